"""When interruptions and faults are due. Pure: it is told steps and seconds, and looks at no clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from moorage.rehearsal.job import Fault, Interruption

SPAN = 30
"""Steps within which an interruption at a random step comes, where nobody knows how many there are."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """step: the highest seen in this attempt, None while there was none. first: the first seen in it.
    job, attempt: seconds since training began, in the first attempt and in this one.
    """

    step: int | None
    first: int | None
    job: float
    attempt: float


class Schedule:
    """Interruptions, each made once but `every`; at most one in an attempt."""

    def __init__(self, interruptions: Sequence[Interruption], seed: int) -> None:
        self._chance = random.Random(f"interruptions-{seed}")
        self._due = [due for item in interruptions for due in self._planned(item)]
        self.made = 0

    def _planned(self, item: Interruption) -> list[_Due]:
        if item.random is None:
            return [_Due(item, step=item.step)]
        if item.among is None:
            return [_Due(item, gap=self._chance.randint(1, SPAN)) for _ in range(item.random)]
        number = min(item.random, max(1, item.among - 1))
        steps = sorted(self._chance.sample(range(1, max(2, item.among)), number))
        return [_Due(item, step=step) for step in steps]

    @property
    def asked(self) -> int:
        """How many were planned; `every` counts as those that were made and the next."""
        return self.made + len(self._due)

    def next(self, now: Moment) -> tuple[Interruption, str] | None:
        """The one that is due, and why; it is asked for once in an attempt, and then counts as made."""
        gaps = 0
        for due in self._due:
            # Of those with gaps only the first counts: the others begin behind it.
            if due.gap is not None:
                gaps += 1
            if (why := due.why(now)) and not (due.gap is not None and gaps > 1):
                if due.item.every is None:
                    self._due.remove(due)
                self.made += 1
                return due.item, why
        return None


class _Due:
    def __init__(self, item: Interruption, *, step: int | None = None, gap: int | None = None) -> None:
        self.item, self.step, self.gap = item, step, gap

    def why(self, now: Moment) -> str:
        if self.step is not None:
            return f"step {self.step}" if now.step is not None and now.step >= self.step else ""
        if self.gap is not None:
            seen = now.step is not None and now.first is not None and now.step >= now.first + self.gap
            return f"{self.gap} steps after step {now.first}" if seen else ""
        if self.item.time is not None:
            return f"{self.item.time:g} s of the job" if now.job >= self.item.time else ""
        assert self.item.every is not None
        return f"{self.item.every:g} s of the attempt" if now.attempt >= self.item.every else ""


class Faults:
    """Each is made once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._waiting = list(faults)
        self.asked, self.made = len(faults), 0

    def due(self, now: Moment) -> list[Fault]:
        ready = [
            fault
            for fault in self._waiting
            if (fault.step is not None and now.step is not None and now.step >= fault.step)
            or (fault.time is not None and now.job >= fault.time)
        ]
        self._waiting = [fault for fault in self._waiting if fault not in ready]
        self.made += len(ready)
        return ready
