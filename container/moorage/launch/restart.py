"""Whether to try again after a failure."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from moorage.contract import ledger
from moorage.contract.failure import Failure
from moorage.contract.ledger import Record
from moorage.contract.settings import Settings

SAME_STEP = 3
"""Failures at the same step after which there is no other attempt: it would fail again, and cost as much."""

_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """step: steps done when it failed, for the ledger; None where nobody knows. note: why there is no other attempt,
    where that is not plain.
    """

    again: bool
    why: str
    step: int | None = None
    note: str = ""


def decide(cause: Failure, *, made: int, most: int, progressed: bool, again: Repeat | None = None) -> Decision:
    """made: restarts so far; most: allowed. progressed: a step was made, or something saved, since the attempt began.
    again: how often the same step has failed.

    A rank that died by a signal or hangs may have been unlucky, and a port may have been taken: they get another try
    whatever they did. A program that ends by itself before its first step would do so again.
    """
    if cause.rank is None and not cause.hung:
        return Decision(again=False, why="it is not a rank that failed")
    if again is not None and again.times >= SAME_STEP:
        return Decision(again=False, why=again.describe())
    if made >= most:
        return Decision(again=False, why=f"{made} of {most} restarts are used up (setting max_restarts)")
    if progressed:
        return Decision(again=True, why=f"restart {made + 1} of {most} at most")
    if cause.signal or cause.hung or _PORT_TAKEN.search(cause.message):
        return Decision(again=True, why="it did not end by itself")
    return Decision(again=False, why="no progress was made since the last start, so it would happen again")


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """done: steps done when it failed, 0 where none was. times: that this has happened. earlier: of them, in earlier
    starts of the job."""

    done: int
    times: int
    earlier: int

    def describe(self) -> str:
        what = f"step {self.done + 1} failed" if self.done else "it failed before its first step"
        where = f", {self.earlier} of them in earlier starts of the job" if self.earlier else ""
        return f"{what} in {self.times} attempts{where}, so it would fail again"


@dataclass(kw_only=True)
class Streak:
    """The failures since the job last came further than ever, by the steps done when they came."""

    best: int = 0
    failed: Counter[int] = field(default_factory=Counter)
    _earlier: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, records: Sequence[Record]) -> Streak:
        """From the ledger of earlier starts. What failed before its first step then does not count: that costs little,
        and whoever started the job again may have mended it.
        """
        streak = cls()
        for _, attempt in groupby(records, key=lambda record: record.key):
            events = [event for record in attempt for event in record.events]
            streak.came_to(max((_steps(event) for event in events if event["event"] == "down"), default=0))
            failed = max((_steps(event) for event in events if event["event"] == "attempt-failed"), default=0)
            if failed:
                streak.fail(failed)
        streak._earlier = streak.failed.copy()
        return streak

    def came_to(self, done: int) -> None:
        if done > self.best:
            self.best = done
            # Ranks are up to a step apart when one of them fails: one step further may be none.
            self.forget(before=done - 1)

    def forget(self, before: int | None = None) -> None:
        for step in [step for step in self.failed if before is None or step < before]:
            del self.failed[step]
            del self._earlier[step]

    def fail(self, done: int) -> Repeat:
        """An attempt failed, the rank at fault having done `done` steps."""
        self.came_to(done)
        self.failed[done] += 1
        return Repeat(done=done, times=self.failed[done], earlier=self._earlier[done])


class Restarts:
    """Of one job: what its attempts came to, and whether there is another."""

    def __init__(self, settings: Settings, streak: Streak) -> None:
        self._settings, self._streak = settings, streak
        self.begin()

    def begin(self) -> None:
        """An attempt starts."""
        self._saved = False
        self._done = 0

    def came_to(self, step: Any, *, saved: bool) -> None:
        """It ended on a host, with so many steps done; None where its program does not tell, but saved something."""
        if step is None:
            self._saved |= saved
        else:
            self._done = max(self._done, int(step))

    def after(self, cause: Failure, *, made: int) -> Decision:
        """made: restarts so far."""
        repeat = self._repeat(cause)
        decision = decide(
            cause,
            made=made,
            most=self._settings.max_restarts,
            progressed=self._saved or self._done > 0,
            again=repeat,
        )
        if cause.hung and self._settings.on_hang == "fail":
            decision = Decision(again=False, why="the setting on_hang is fail")
        for_good = repeat is not None and repeat.times >= SAME_STEP and not decision.again
        note = f"There is no other attempt: {decision.why}." if for_good else ""
        return replace(decision, step=repeat.done if repeat else None, note=note)

    def _repeat(self, cause: Failure) -> Repeat | None:
        if cause.rank is None and not cause.hung:
            return None
        if self._saved:  # a program without a Run, whose steps nobody knows, came somewhere
            self._streak.forget()
            return None
        self._streak.came_to(self._done)
        return self._streak.fail(self._done if cause.step is None else cause.step)


def _steps(event: ledger.Event) -> int:
    step = event.get("step")
    return step if type(step) is int and step > 0 else 0


def folder_state(folder: Path) -> str:
    """Changes when a program saves something. What is unfinished, the marks of the platform's upload, and the ledger
    do not count.
    """
    digest = hashlib.blake2b(digest_size=16)
    own = str(folder / ledger.FOLDER)
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if ".sagemaker-" not in name and os.path.join(parent, name) != own  # noqa: PTH118
        )
        for name in sorted(files):
            if ".sagemaker-" in name:
                continue
            try:
                found = os.stat(os.path.join(parent, name))  # noqa: PTH116, PTH118  (thousands of files)
            except OSError:
                continue
            digest.update(f"{parent}/{name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
