"""How the ranks of this host are: looked at every few seconds, told to the first host, and looked at closely on demand.

Ranks without a Run say nothing of their steps, and are left alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage.contract.failure import Failure
from moorage.contract.ledger import Ledger
from moorage.contract.progress import Activity, Mark, read_marks
from moorage.contract.settings import Settings
from moorage.launch.closeup import Answers, CloseUp
from moorage.launch.hang import Seen
from moorage.launch.loop import Loop, Timer
from moorage.launch.plan import LaunchPlan
from moorage.launch.rhythm import Rhythm
from moorage.launch.stacks import Stacks, state_of
from moorage.launch.wire import Message

EVERY = 2.0
"""Seconds between two looks at the ranks' files."""

_FRAMES, _LOG_LINES = 12, 120
"""Of a rank: frames that are sent, lines of its stacks that are logged."""

KINDS = frozenset({"look", "hung", "straggler"})

logger = logging.getLogger("moorage")


@dataclass(eq=False, kw_only=True)
class Lookout:
    """Over the ranks of one attempt. send: to the first host. run_folder: where they leave their marks."""

    loop: Loop
    send: Callable[[Message], object]
    settings: Settings
    plan: LaunchPlan
    run_folder: Path
    ledger: Ledger
    clock: Callable[[], float] = time.monotonic
    _rhythms: dict[int, Rhythm] = field(default_factory=dict)
    _marks: dict[int, Mark] = field(default_factory=dict)
    _every: float = EVERY
    _awake: float = 0.0
    """Seconds that this process has seen go by: those in which it was frozen itself do not count."""
    _looked_at: float = 0.0
    _timer: Timer | None = None
    _is_open: bool = True
    _looking: bool = False

    def start(self) -> None:
        bound, window = self.settings.hang_seconds, self.settings.straggler_seconds
        if bound == 0 and not window:
            return
        self._every = min([EVERY, *(seconds / 8 for seconds in (bound, window) if seconds)])
        self._looked_at = self.clock()
        self._timer = self.loop.after(self._every, self._look_over)

    def close(self) -> None:
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()

    def heard(self, message: Message) -> None:
        """What the first host says, of `KINDS`."""
        kind = message["type"]
        if kind == "look":
            self._look_closely()
        elif kind == "straggler":
            logger.warning("%s", message["text"])
            self.ledger.write("straggler", **{key: message[key] for key in _LEDGER_STRAGGLER})
        elif kind == "hung":
            self._say_hung(Failure.from_json(message["failure"]), str(message["action"]))

    def _say_hung(self, failure: Failure, action: str) -> None:
        if action == "wait":
            maybe = "Perhaps a hang, but every rank is at work by itself: looking again later"
            logger.warning("%s %s", failure.message, maybe)
        else:
            logger.warning("%s%s", failure.headline, " The setting on_hang is warn" if action == "warn" else "")
        self.ledger.write(
            "hung", attempt=self.plan.attempt, host=failure.host, rank=failure.rank, step=failure.step, action=action,
            message=failure.message,
        )  # fmt: skip

    # Every few seconds

    def _look_over(self) -> None:
        now = self.clock()
        self._awake += min(now - self._looked_at, 2 * self._every)
        self._looked_at = now
        # A program that starts ranks by itself has some that are not ours.
        ours = range(len(self.plan.ranks))
        self._marks = {mark.local_rank: mark for mark in read_marks(self.run_folder) if mark.local_rank in ours}
        for local_rank, mark in self._marks.items():
            rhythm = self._rhythms.setdefault(local_rank, Rhythm(self.settings.hang_seconds))
            rhythm.look(mark, self._awake)
        if self._marks:
            ranks = [self._pulse(mark) for mark in self._marks.values()]
            self.send({"type": "pulse", "attempt": self.plan.attempt, "ranks": ranks})
        self._timer = self.loop.after(self._every, self._look_over)

    def _pulse(self, mark: Mark) -> Mapping[str, Any]:
        rhythm = self._rhythms[mark.local_rank]
        return {
            **self._who(mark), "limit": round(rhythm.limit, 3), "input": round(mark.input_seconds, 6),
            "compute": round(mark.compute_seconds, 6),
        }  # fmt: skip

    def _who(self, mark: Mark) -> dict[str, Any]:
        rhythm = self._rhythms[mark.local_rank]
        return {
            "rank": self.plan.ranks[mark.local_rank].rank, "step": mark.step, "activity": int(mark.activity),
            "silent": round(rhythm.silent(self._awake), 3), "usual": round(rhythm.usual, 6),
        }  # fmt: skip

    # On demand

    def _look_closely(self) -> None:
        if not self._looking and self._is_open:
            self._looking = True
            CloseUp(self.loop, list(self._marks.values()), self.run_folder, self._tell)

    def _tell(self, answers: Answers) -> None:
        self._looking = False
        if not self._is_open:
            return
        ranks = []
        for mark, stacks in answers:
            seen, last = self._seen(mark, stacks), stacks[-1] if stacks else Stacks()
            self._log(seen, mark.pid, last)
            ranks.append(seen.to_json())
        self.send({"type": "looked", "attempt": self.plan.attempt, "ranks": ranks})

    def _seen(self, mark: Mark, stacks: Sequence[Stacks]) -> Seen:
        state, last = state_of(mark.pid), stacks[-1] if stacks else Stacks()
        return Seen(
            **self._who(mark), host=self.plan.host, state=state.describe(), stopped=state.is_stopped,
            ended=state.has_ended, waits=last.waits, where=last.where, moves=len({one.main for one in stacks}) > 1,
            frames=tuple(str(frame) for frame in last.main[:_FRAMES]),
        )  # fmt: skip

    def _log(self, rank: Seen, pid: int, stacks: Stacks) -> None:
        prefix = f"[{self.plan.host}:{rank.rank}]"
        activity = Activity(rank.activity).name.lower().replace("_", " ")
        state = rank.state if rank.answers else f"does not answer, {rank.state}"
        lines = [f"{prefix} pid {pid}, step {rank.step}, {activity}, silent for {rank.silent:.0f} s, {state}"]
        main = [("main thread", stacks.main)] if rank.answers else []
        for name, thread in (*main, *(("another thread", thread) for thread in stacks.others)):
            lines += [f"{prefix} {name}, the innermost call first:", *(f"{prefix}   {frame}" for frame in thread)]
        for line in lines[:_LOG_LINES]:
            logger.warning("%s", line)


_LEDGER_STRAGGLER = ("host", "rank", "step", "factor", "part", "own", "others", "share")
