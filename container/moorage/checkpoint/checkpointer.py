"""The checkpoints of one rank of a job: saved behind the training, verified before they are used."""

from __future__ import annotations

import json
import logging
import pickle
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner

from moorage.checkpoint import retention
from moorage.checkpoint.commit import Commit, Save
from moorage.checkpoint.durable import describe
from moorage.checkpoint.group import USUAL, Group
from moorage.checkpoint.layout import MANIFEST, step_name
from moorage.checkpoint.manifest import JSON, Manifest, SaveInfo
from moorage.checkpoint.metadata import MetadataError, SafeReader, TensorFacts, read_metadata, tensor_facts
from moorage.checkpoint.other import Other, find_other
from moorage.checkpoint.plan import Plan, make_plan, structure
from moorage.checkpoint.resume import Resume
from moorage.checkpoint.shard import Staging
from moorage.checkpoint.source import Folder, Folders, Source, exists
from moorage.checkpoint.storage import Disk, Storage
from moorage.checkpoint.store import find_store
from moorage.errors import CheckpointError, MoorageError

T = TypeVar("T")

__all__ = ["Checkpointer", "Outcome", "SaveInfo"]


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


class Checkpointer:
    """Saves and loads the checkpoints of one folder, or of another storage. Made on all ranks alike; the collective
    methods say so.

    A folder of each host's own and one that hosts share work the same: who shares it is found out.
    keep: committed checkpoints that stay, beside the best; keep_every: steps, one in so many stays for good.
    uploads: whether an agent uploads from the folder; None is when it leaves a mark. upload_bound: seconds that a file
    may wait for it without a warning, 0 is for ever. attempt: of the job, for the manifest.
    timeout: how long a rank waits for another, which includes the other's writing.
    """

    def __init__(
        self,
        folder: Path | Storage,
        *,
        rank: int,
        world_size: int,
        local_rank: int,
        host: str,
        keep: int = 2,
        keep_every: int = 0,
        uploads: bool | None = None,
        upload_bound: float = 0.0,
        attempt: int = 0,
        log: logging.Logger | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self._storage = Disk(folder) if isinstance(folder, Path) else folder
        self._attempt = attempt
        self._log = log or logging.getLogger("moorage")
        self._group = Group(rank, world_size, timeout)
        self._store = find_store(self._storage, self._group, host=host, local_rank=local_rank)
        self._shelf = retention.Shelf(
            self._storage, retention.Rule(keep=keep, every=keep_every), self._log,
            agent=uploads if self._storage.path is not None else False, upload_bound=upload_bound,
            hosts={self._store.hosts[mate] for mate in self._store.mates},
        )  # fmt: skip
        # Files of two attempts at the same step never have the same name.
        self._shard_name = f"{self._group.share(secrets.token_hex(4))}-{rank:05d}.distcp"
        self._newest: int | None = None
        """Step of the newest checkpoint, None until they were looked at."""
        self._planned_for: tuple[Hashable, Plan, Staging] | None = None
        self._thread: threading.Thread | None = None
        self._saving: int | None = None
        self._outcomes: deque[Outcome] = deque()
        self._lock = threading.Lock()
        self._best = -1

    # Loading

    def newest(self) -> Manifest | None:
        """The newest checkpoint that is whole among the hosts, then whole and verified on each. Collective.

        None when none was ever committed. Leftovers newer than it are removed, damaged ones moved aside, each with a
        line in the log. Raises CheckpointError when there are checkpoints and none can be used.
        """
        self._join()
        manifest = Resume(self._store, self._group, self._log).newest()
        self._newest = manifest.step if manifest else -1
        self._shelf.went_on_from(manifest.step if manifest else -1)
        return manifest

    def at(self, step: int) -> Manifest | None:
        """The checkpoint of one step, whole and verified on every host; None when it is gone or damaged. Collective."""
        self._join()
        return Resume(self._store, self._group, self._log).whole(step)

    def other(self, folder: Path) -> Other:
        """The newest checkpoint in a folder of another job, whole and verified on every host. Collective.

        Nothing is written there. Raises CheckpointError when there is none.
        """
        self._join()
        return find_other(Folders(folder), self._group, self._store.hosts, self._log)

    def agreed(self, what: str, action: Callable[[], T]) -> T:
        """What `action` gives on all ranks alike. Collective.

        what: for the CheckpointError of the other ranks when one fails, or when the hosts differ.
        """
        self._join()
        found = self._group.each(what, action)
        for rank, value in enumerate(found):
            if value != found[0]:
                raise CheckpointError(what, why=f"{self._store.hosts[rank]} holds something else than the first host")
        return found[0]

    def stored(self, manifest: Manifest, source: Source | None = None) -> dict[str, TensorFacts]:
        """The tensors in a checkpoint. source: where that of another job is. Raises CheckpointError."""
        return tensor_facts(self._reader(manifest, source).read_metadata())

    def load(self, manifest: Manifest, tensors: Mapping[str, Tensor], source: Source | None = None) -> None:
        """Fill `tensors` in place from a checkpoint given by `newest`, `at` or `other`, whatever the sharding.
        Collective.

        Each rank may ask for other tensors, or none. Raises CheckpointError on all ranks when it fails on one.
        """

        def read() -> None:
            reader = self._reader(manifest, source)
            planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
            planner.set_up_planner(dict(tensors), reader.read_metadata(), is_coordinator=False)
            plan = planner.create_local_plan()
            try:
                reader.read_data(plan, planner).wait()
            except pickle.UnpicklingError:
                # Without torch's own words, which advise to trust the file.
                raise CheckpointError(
                    f"checkpoint {manifest.name} holds something that is not a tensor",
                    why="loading it could run code of whoever wrote it",
                    fix="find out who can write to the checkpoint folder and its S3 prefix",
                ) from None

        self._join()
        self._group.each(f"checkpoint {manifest.name} cannot be loaded", read)

    def _reader(self, manifest: Manifest, source: Source | None) -> SafeReader:
        source = source or self._storage.checkpoint(manifest.step)
        assert isinstance(source, Folder)
        try:
            return SafeReader(
                source.path, read_metadata(source, {name: entry.size for name, entry in manifest.files.items()})
            )
        except MetadataError as error:
            raise CheckpointError(f"the metadata of {source} cannot be used", why=str(error)) from None

    # Saving

    def save(
        self, tensors: Mapping[str, Tensor], *, info: SaveInfo, objects: JSON, per_rank: JSON = None, best: bool = False
    ) -> bool:
        """Copy the tensors and go on; the files are written behind. Collective.

        Waits for a save still under way, which counts as pause. False when this step is committed already: it is never
        overwritten. `poll` tells how it ended. Raises CheckpointError, on all ranks, when the state cannot make a
        checkpoint.
        """
        began = time.monotonic()
        if self._saving is not None and self._thread is not None and self._thread.is_alive():
            self._log.info("the save of step %d is still under way: step %d waits for it", self._saving, info.step)
        self._join()
        started = time.monotonic()
        # Written out at once: the caller may change it as soon as this returns.
        state, unsayable = _as_text({"objects": objects, "per_rank": per_rank})
        planned = self._planned(tensors, info.step, unsayable)
        if planned is None:
            return False
        plan, staging = planned
        save = Save(
            info=info, state=state, best=best, attempt=self._attempt, shard_name=self._shard_name,
            plan=plan, staging=staging, copying=staging.copy(tensors),
        )  # fmt: skip
        self._saving = info.step
        self._start(self._run, save, started, time.monotonic() - began)
        return True

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Plan the saves of such tensors and get the memory for them: the first then pauses no longer than the others.

        Collective. Worth calling once an optimizer has made its first step, since before that it has no state.
        Raises CheckpointError as `save` does.
        """
        self._join()
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
                self._newest = None if self._newest is None else save.info.step
                self._after_commit(save.info.step)
        except USUAL as failure:
            error = f"{type(failure).__name__}: {failure}"
        finally:
            self._outcomes.append(
                Outcome(
                    step=save.info.step,
                    error=error,
                    pause=pause,
                    seconds=time.monotonic() - started,
                    size=0 if error else commit.size,
                )
            )

    def _after_commit(self, step: int) -> None:
        if self._store.is_leader:
            with self._lock:
                if self._best == step:
                    self._mark(step)
        try:
            self._prune()
        except USUAL as error:
            # The checkpoint is committed all the same.
            self._log.warning("old checkpoints stay for now: %s: %s", type(error).__name__, error)

    def _prune(self) -> None:
        look = self._shelf.look() if self._store.is_leader else None
        looks = [found for found in self._group.gather(look) if found is not None]
        if look is not None:
            self._shelf.warn(look)
            with self._lock:
                self._shelf.prune(looks)

    def poll(self) -> Outcome | None:
        """How a save ended that has not been told yet; None while there is none. Never waits."""
        return self._outcomes.popleft() if self._outcomes else None

    def wait(self) -> Outcome | None:
        """`poll`, once nothing is under way any more."""
        self._join()
        return self.poll()

    # Keeping

    def mark_best(self, step: int) -> None:
        """Let the checkpoint of `step`, committed or on its way, be the best: it stays until another is."""
        if not self._store.is_leader:
            return
        with self._lock:
            self._best = step
            if self._is_committed(step):
                self._mark(step)

    def _is_committed(self, step: int) -> bool:
        """Seldom asked of the storage, where the answer may take a while."""
        if self._newest is not None and step >= self._newest:
            return step == self._newest
        return exists(self._storage.checkpoint(step), MANIFEST)

    def _mark(self, step: int) -> None:
        try:
            retention.mark_best(self._storage, step)
        except OSError as error:
            self._log.warning("%s cannot be marked as the best: %s", step_name(step), describe(error))
        except MoorageError as error:
            self._log.warning("%s cannot be marked as the best: %s", step_name(step), error)

    def prune(self) -> None:
        """Remove what need not stay; every commit does so by itself. Collective."""
        self._join()
        self._prune()

    def close(self) -> None:
        """Wait for a save under way, then leave the group."""
        self._join()
        self._group.close()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = self._saving = None


def _as_text(state: JSON) -> tuple[str, str]:
    """The state as JSON, and why it cannot be that."""
    try:
        return json.dumps(state, allow_nan=False), ""
    except (ValueError, TypeError, RecursionError) as error:
        return "", f"{error}; encode it with moorage.checkpoint.jsonable.encode"
