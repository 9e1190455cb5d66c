"""The saves of one rank: planned once, then one at a time behind the training."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from moorage.checkpoint.commit import Commit, Save
from moorage.checkpoint.copying import CHANGED
from moorage.checkpoint.group import USUAL, Group
from moorage.checkpoint.manifest import JSON, SaveInfo
from moorage.checkpoint.plan import Plan, make_plan, structure
from moorage.checkpoint.shard import Staging
from moorage.checkpoint.store import Store
from moorage.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a save ended. error: empty when committed. pause, seconds: how long training waited, and the whole save took.

    size: bytes of the checkpoint over all ranks, 0 when it was not committed.
    """

    step: int
    error: str
    pause: float
    seconds: float
    size: int

    @property
    def committed(self) -> bool:
        return not self.error

    @property
    def changed(self) -> bool:
        """Whether it failed only because something else than training changed what it copied."""
        return CHANGED in self.error


class Saves:
    """Methods marked collective are called on all ranks alike.

    is_committed: whether a step is, as this rank sees it. after: called in the thread of a save with the step that it
    committed.
    """

    def __init__(
        self,
        store: Store,
        group: Group,
        *,
        attempt: int,
        is_committed: Callable[[int], bool],
        after: Callable[[int], None],
        log: logging.Logger,
    ) -> None:
        self._store, self._group, self._attempt, self._log = store, group, attempt, log
        self._is_committed, self._after = is_committed, after
        # Files of two attempts at the same step never have the same name.
        self._shard_name = f"{group.share(secrets.token_hex(4))}-{group.rank:05d}.distcp"
        self._planned_for: tuple[Hashable, Plan, Staging] | None = None
        self._thread: threading.Thread | None = None
        self._under_way: Save | None = None
        self._outcomes: deque[Outcome] = deque()
        self._copies_behind = True

    def save(
        self,
        tensors: Mapping[str, Tensor],
        *,
        info: SaveInfo,
        objects: JSON,
        per_rank: JSON,
        best: bool,
        steady: frozenset[str],
    ) -> bool:
        """As Checkpointer.save. Collective."""
        began = time.monotonic()
        if self._under_way is not None and self._thread is not None and self._thread.is_alive():
            self._log.info(
                "the save of step %d is still under way: step %d waits for it", self._under_way.info.step, info.step
            )
        self.join()
        started = time.monotonic()
        # Written out at once: the caller may change it as soon as this returns.
        state, unsayable = _as_text({"objects": objects, "per_rank": per_rank})
        planned = self._planned(tensors, info.step, unsayable)
        if planned is None:
            return False
        plan, staging = planned
        self._under_way = Save(
            info=info, state=state, best=best, attempt=self._attempt, shard_name=self._shard_name, plan=plan,
            staging=staging, copying=staging.copy(tensors, steady if self._copies_behind else frozenset()),
        )  # fmt: skip
        self._start(self._run, self._under_way, started, time.monotonic() - began)
        return True

    def settle(self) -> None:
        """Let the caller's thread change all that is being copied. It may be called at each step: it costs next to
        nothing when there is nothing to wait for."""
        if self._under_way is not None:
            self._under_way.copying.settle()

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """As Checkpointer.prepare. Collective."""
        self.join()
        planned = self._planned(tensors, -1, "")
        if planned is not None:
            self._start(planned[1].touch)

    def _start(self, action: Callable[..., None], *args: Any) -> None:
        # Not a daemon: when the program fails meanwhile, its last save still ends on all ranks before the process does.
        # A daemon that is inside torch when the interpreter goes away aborts the process, whose exit code is then lost.
        self._thread = threading.Thread(target=action, args=args, name="checkpoint")
        self._thread.start()

    def _planned(self, tensors: Mapping[str, Tensor], step: int, unsayable: str) -> tuple[Plan, Staging] | None:
        """The plan and the memory for it; None when `step` is committed. One small message while nothing changes."""
        now = structure(tensors)
        changed = self._planned_for is None or now != self._planned_for[0]
        already = self._store.is_leader and self._is_committed(step)
        any_changed, any_already, any_unsayable, most, least = self._group.largest(
            [changed, already, bool(unsayable), step, -step]
        )
        if most != -least:
            raise CheckpointError(f"the ranks save different steps: {-least} and {most}")
        if any_unsayable:
            raise CheckpointError(
                f"the state of step {step} cannot be written as JSON", why=unsayable or "another rank says which part"
            )
        if any_already:
            return None
        if any_changed or self._planned_for is None:
            plan = make_plan(tensors, self._group)
            self._planned_for = (now, plan, Staging(plan.items, tensors))
        return self._planned_for[1:]

    def _run(self, save: Save, started: float, pause: float) -> None:
        commit = Commit(save, self._store, self._group, self._log)
        error = "the thread of the save ended unexpectedly"
        try:
            error = commit.run()
            if not error:
                self._after(save.info.step)
        except USUAL as failure:
            error = f"{type(failure).__name__}: {failure}"
        finally:
            if save.copying.changed:
                self._copies_behind = False
                self._log.warning("from now on training waits while a checkpoint copies the weights")
            self._outcomes.append(
                Outcome(
                    step=save.info.step,
                    error=error,
                    pause=pause + save.copying.waited,
                    seconds=time.monotonic() - started,
                    size=0 if error else commit.size,
                )
            )

    def poll(self) -> Outcome | None:
        """How a save ended that has not been told yet; None while there is none. Never waits."""
        return self._outcomes.popleft() if self._outcomes else None

    def join(self) -> None:
        """Wait for a save under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = self._under_way = None


def _as_text(state: JSON) -> tuple[str, str]:
    """The state as JSON, and why it cannot be that."""
    try:
        return json.dumps(state, allow_nan=False), ""
    except (ValueError, TypeError, RecursionError) as error:
        return "", f"{error}; encode it with moorage.checkpoint.jsonable.encode"
