"""Which rank the others wait for in every step, from the time that each takes by itself."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FACTOR = 1.5
"""Times the median of the others that a rank's own time is when it is slow."""

IN_A_ROW = 3
"""Windows after which that is no accident."""

SHARE = 0.1
"""Of a step that must be lost: what is slow and costs nothing is not worth a word."""

STEPS = 5
"""In a window, at least."""

REPEAT = 1800.0
"""Seconds between two lines about one host."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Of a rank, at some moment: time in seconds of the first host's clock, step and own seconds as in a `Mark`."""

    host: str
    rank: int
    time: float
    step: int
    input: float
    compute: float


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Of a rank in a window that ended at `step`: seconds per step, in all and by itself."""

    host: str
    rank: int
    step: int
    wall: float
    input: float
    compute: float

    @property
    def own(self) -> float:
        return self.input + self.compute


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A slow host. rank: its slowest. factor: times what the others take. part: what it loses most with."""

    host: str
    rank: int
    step: int
    factor: float
    part: str
    own: float
    others: float
    share: float
    """Of the step, in which the others wait for it."""

    def describe(self) -> str:
        return (
            f"{self.host} is slow: rank {self.rank} takes {self.own:.3g} s of a step by itself, mostly {self.part}, "
            f"{self.factor:.1f} x the {self.others:.3g} s of the others, which wait for it {self.share:.0%} of the time"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "host": self.host, "rank": self.rank, "step": self.step, "factor": round(self.factor, 2), "part": self.part,
            "own": round(self.own, 6), "others": round(self.others, 6), "share": round(self.share, 4),
        }  # fmt: skip


class Stragglers:
    """seconds: of a window; 0 compares nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first: dict[int, Sample] = {}
        self._last: dict[int, Sample] = {}
        self._slow: dict[int, int] = {}
        self._said: dict[str, float] = {}

    def restart(self) -> None:
        self._first, self._last, self._slow = {}, {}, {}

    def take(self, samples: Sequence[Sample]) -> Straggler | None:
        """What a host says of its ranks; a slow host, when one is to be named now."""
        if not self._seconds or not samples:
            return None
        for sample in samples:
            self._last[sample.rank] = sample
            self._first.setdefault(sample.rank, sample)
        if not all(self._is_whole(rank) for rank in self._first):
            return None
        paces = [_pace(first, self._last[rank]) for rank, first in self._first.items()]
        now = max(sample.time for sample in self._last.values())
        self._first = dict(self._last)
        slow = {found.rank: found for found in compare(paces)}
        self._slow = {rank: self._slow.get(rank, 0) + 1 for rank in slow}
        due = [
            found
            for rank, found in slow.items()
            if self._slow[rank] >= IN_A_ROW and now - self._said.get(found.host, -REPEAT) >= REPEAT
        ]
        if not due:
            return None
        worst = max(due, key=lambda found: found.share)
        self._said[worst.host] = now
        return worst

    def _is_whole(self, rank: int) -> bool:
        first, last = self._first[rank], self._last[rank]
        return last.step - first.step >= STEPS and last.time - first.time >= self._seconds


def compare(paces: Sequence[Pace]) -> list[Straggler]:
    """The slow ones: ranks against those of the other hosts; on a single host, a rank against the others."""
    several = len({pace.host for pace in paces}) > 1
    groups: dict[object, list[Pace]] = {}
    for pace in paces:
        groups.setdefault(pace.host if several else pace.rank, []).append(pace)
    found = []
    for key, group in groups.items():
        others = [pace for pace in paces if (pace.host if several else pace.rank) != key]
        if others:
            usual = _Usual.of(others)
            found += [usual.slow(pace) for pace in group if usual.is_passed_by(pace)]
    return found


@dataclass(frozen=True, kw_only=True)
class _Usual:
    """Medians of the others."""

    own: float
    input: float
    compute: float

    @classmethod
    def of(cls, paces: Sequence[Pace]) -> _Usual:
        return cls(
            own=statistics.median(pace.own for pace in paces),
            input=statistics.median(pace.input for pace in paces),
            compute=statistics.median(pace.compute for pace in paces),
        )

    def is_passed_by(self, pace: Pace) -> bool:
        return pace.own > FACTOR * self.own and pace.own - self.own > SHARE * pace.wall

    def slow(self, pace: Pace) -> Straggler:
        part = "input" if pace.input - self.input > pace.compute - self.compute else "computing"
        return Straggler(
            host=pace.host, rank=pace.rank, step=pace.step, part=part, own=pace.own, others=self.own,
            factor=pace.own / max(self.own, 1e-6), share=min(1.0, (pace.own - self.own) / pace.wall),
        )  # fmt: skip


def _pace(first: Sample, last: Sample) -> Pace:
    steps = last.step - first.step
    return Pace(
        host=last.host,
        rank=last.rank,
        step=last.step,
        wall=(last.time - first.time) / steps,
        input=(last.input - first.input) / steps,
        compute=(last.compute - first.compute) / steps,
    )
