"""Where the time of a job went, over all its attempts and hosts, from their ledgers.

| part | seconds |
|---|---|
| useful | steps done for the first time, data loading included |
| replayed | steps done again, since an interruption had lost them |
| pause | training waited for a save |
| evaluation | between the first and the last batch of `run.evaluating` |
| start_up | from the start of the ranks to the loop: imports, process group, model, loading the checkpoint |
| ending | from the last step to the end of the ranks: the last save, the model, or noticing that a rank failed |
| idle | between two attempts: nobody trained |

The parts add up to the wall time. Each host's own clock counts, and only differences of it; attempts are ordered by
their numbers. An attempt's seconds are the mean over its hosts, which train in step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any

from moorage.contract.ledger import Event, Record


@dataclass(kw_only=True)
class Parts:
    """Seconds."""

    useful: float = 0.0
    replayed: float = 0.0
    pause: float = 0.0
    evaluation: float = 0.0
    start_up: float = 0.0
    ending: float = 0.0
    idle: float = 0.0

    @property
    def total(self) -> float:
        return math.fsum(asdict(self).values())

    def add(self, other: Parts, weight: float = 1.0) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + weight * getattr(other, field.name))


@dataclass(frozen=True, kw_only=True)
class AttemptTime:
    """One attempt. first, last: steps done when it began to train and when it ended, None where it never trained."""

    launch: int
    attempt: int
    hosts: tuple[str, ...]
    first: int | None
    last: int | None
    parts: Parts


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Of a job. wall: seconds from its first start to its last end, by the mean of its hosts."""

    wall: float
    parts: Parts
    attempts: tuple[AttemptTime, ...]

    @property
    def share(self) -> float:
        """Of the wall time that was useful, from 0 to 1."""
        return self.parts.useful / self.wall if self.wall else 0.0

    @property
    def steps(self) -> int:
        return max((attempt.last or 0 for attempt in self.attempts), default=0)

    def to_json(self) -> dict[str, Any]:
        return {
            "goodput": round(self.share, 4),
            "wall_seconds": round(self.wall, 3),
            "seconds": _rounded(self.parts),
            "steps": self.steps,
            "attempts": [
                {**vars(attempt), "hosts": list(attempt.hosts), "parts": _rounded(attempt.parts)}
                for attempt in self.attempts
            ],
        }

    def table(self) -> list[str]:
        """Lines for the log."""
        hosts = {host for attempt in self.attempts for host in attempt.hosts}
        counts = f"{_counted(len(self.attempts), 'attempt')} on {_counted(len(hosts), 'host')}"
        head = f"goodput {round(self.share, 4):.1%} of {self.wall:.1f} s: {_counted(self.steps, 'step')}, {counts}"
        rows = [
            f"  {name.replace('_', '-'):<10} {seconds:>11.1f} s {seconds / self.wall if self.wall else 0.0:>7.1%}"
            for name, seconds in asdict(self.parts).items()
        ]
        return [head, *rows]


def measure(records: Sequence[Record]) -> Goodput | None:
    """None where no rank has told when it trained: its program has no Run. records: as from `read_ledger`."""
    if not any(event["event"] == "training" for record in records for event in record.events):
        return None
    total, wall, best = Parts(), 0.0, 0
    attempts: list[AttemptTime] = []
    ends: dict[str, float] = {}
    for (launch, attempt), group in groupby(records, key=lambda record: record.key):
        times = [(record.host, _HostTime(record.events, best)) for record in group if record.events]
        if not times:
            continue
        gaps = [max(0.0, time.start - ends[host]) for host, time in times if host in ends]
        parts = Parts(idle=sum(gaps) / len(gaps) if gaps else 0.0)
        for _, time in times:
            parts.add(time.parts, 1 / len(times))
        wall += parts.idle + sum(time.end - time.start for _, time in times) / len(times)
        total.add(parts)
        first = [time.first for _, time in times if time.first is not None]
        last = [time.last for _, time in times if time.last is not None]
        attempts.append(
            AttemptTime(
                launch=launch, attempt=attempt, hosts=tuple(sorted({host for host, _ in times})), parts=parts,
                first=min(first, default=None), last=max(last, default=None),
            )
        )  # fmt: skip
        best = max(best, *last) if last else best
        ends |= {host: time.end for host, time in times}
    return Goodput(wall=wall, parts=total, attempts=tuple(attempts))


class _HostTime:
    """One attempt on one host, its time gone through event by event. before: the most steps that were done earlier."""

    def __init__(self, events: Sequence[Event], before: int) -> None:
        self.parts = Parts()
        self.first: int | None = None
        self.last: int | None = None
        self._before = before
        self._open = 0.0
        """Seconds of steps whose number is not known yet."""
        self._evaluating = False
        self._blocked: dict[int, float] = {}
        self.start: float = events[0]["time"]
        self._now: float = self.start
        for event in events:
            self._take(event, event["event"], _step(event))
        self.end = max([self._now, *(event["time"] for event in events)])
        self._close(self.end - self._now + self._open)

    def _close(self, rest: float) -> None:
        if self.last is None:
            self.parts.start_up += rest
        else:
            self.parts.ending += rest

    def _take(self, event: Event, kind: str, step: int | None) -> None:
        if kind == "training" and self.last is None:
            self.parts.start_up += self._pass_to(event["time"])
            self.first = self.last = step or 0
        if self.last is None:
            return
        if kind in ("progress", "evaluating", "saving"):
            self._train_to(event["time"])
            if kind == "saving" and step is not None:
                self._blocked[step] = self._pause(_seconds(event, "blocked"))
            self._done(step)
            self._evaluating = kind == "evaluating"
        elif kind == "evaluated":
            self._train_to(event["time"])
            self._evaluating = False
        elif kind == "save" and step is not None:
            self._train_to(event["time"])
            self._pause(_seconds(event, "pause") - self._blocked.get(step, 0.0))
        elif kind == "down":
            # What follows the last step is no step.
            self._train_to(min(event["time"], _seconds(event, "at")))
            self._done(step)

    def _pass_to(self, moment: float) -> float:
        """Seconds gone by; none where the clock was set back."""
        passed = max(0.0, moment - self._now)
        self._now += passed
        return passed

    def _train_to(self, moment: float) -> None:
        passed = self._pass_to(moment)
        if self._evaluating:
            self.parts.evaluation += passed
        else:
            self._open += passed

    def _pause(self, seconds: float) -> float:
        seconds = max(0.0, min(seconds, self._open))
        self._open -= seconds
        self.parts.pause += seconds
        return seconds

    def _done(self, step: int | None) -> None:
        """`step` steps are done: the time since the last such word was theirs."""
        if step is None or self.last is None or step <= self.last:
            return
        new = min(step - self.last, max(0, step - self._before)) / (step - self.last)
        self.parts.useful += self._open * new
        self.parts.replayed += self._open * (1 - new)
        self._open, self.last = 0.0, step


def _step(event: Event) -> int | None:
    step = event.get("step")
    return step if type(step) is int and step >= 0 else None


def _seconds(event: Event, key: str) -> float:
    value = event.get(key)
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e12 else 0.0


def _rounded(parts: Parts) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in asdict(parts).items()}


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
