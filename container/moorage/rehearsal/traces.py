"""The metrics a job wrote, by step and time: from a rehearsal's events.jsonl, or from log files.

`#metric` lines are read as they stand. What other programs write is found by the job's metric regexes, which the
rehearsal has applied: its Metric events.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from moorage.rehearsal.events import AttemptStarted, Event, HostLine, Metric

_LINE = re.compile(r"(?:^|\s)#metric step=(\d+)((?: [A-Za-z_][A-Za-z0-9_.\-/]*=\S+)*)")
_PAIR = re.compile(r" ([A-Za-z_][A-Za-z0-9_.\-/]*)=(\S+)")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?)\d*(Z|[+-]\d\d:?\d\d)?\s")
"""How CloudWatch's tail, docker's --timestamps and most loggers begin a line."""

logger = logging.getLogger("moorage")


@dataclass(frozen=True, slots=True)
class Point:
    """text: the value as it was written. attempt: from 1, one more wherever the steps go back as well.
    step: None where the line had none. time: seconds since 1970, None where the log has no times."""

    attempt: int
    step: int | None
    text: str
    time: float | None = None

    @property
    def value(self) -> float:
        """NaN where it is no number."""
        try:
            return float(self.text)
        except ValueError:
            return math.nan


Traces = dict[str, list[Point]]
"""Of each metric, in the order of writing. `epoch` is one of them."""


class _Collector:
    def __init__(self) -> None:
        self.traces: Traces = {}
        self._attempts: dict[str, tuple[int, int | None]] = {}
        self.started = 1

    def add(self, name: str, step: int | None, text: str, time: float | None) -> None:
        attempt, last = self._attempts.get(name, (self.started, None))
        if attempt < self.started:
            attempt, last = self.started, None
        elif step is not None and last is not None and step < last:
            attempt += 1
            self.started = max(self.started, attempt)
        self._attempts[name] = attempt, step if step is not None else last
        self.traces.setdefault(name, []).append(Point(attempt, step, text, time))

    def line(self, line: str, time: float | None) -> bool:
        found = _LINE.search(line)
        if found is None:
            return False
        for name, text in _PAIR.findall(found[2]):
            self.add(name, int(found[1]), text, time)
        return True


def traces_of(events: Iterable[Event]) -> Traces:
    """From a rehearsal's events, oldest first. A metric that `#metric` lines have is not taken twice."""
    ours, theirs = _Collector(), _Collector()
    hosts: dict[str, str] = {}
    for event in events:
        if isinstance(event, AttemptStarted):
            ours.started = max(ours.started + bool(ours.traces), event.number)
            theirs.started = max(theirs.started + bool(theirs.traces), event.number)
        elif isinstance(event, HostLine):
            ours.line(event.line, event.time)
        elif isinstance(event, Metric) and hosts.setdefault(event.name, event.host) == event.host:
            text = "nan" if event.value is None else repr(event.value)
            theirs.add(event.name, event.step, text, event.time)
    return {**theirs.traces, **ours.traces}


def traces_of_logs(logs: Sequence[Path]) -> Traces:
    """From `#metric` lines of log files, in their order. Times are those that the lines begin with, if they do."""
    found = _Collector()
    for path in logs:
        found.started += bool(found.traces)
        try:
            with path.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if "#metric " in line:
                        found.line(line, _time(line))
        except OSError as error:
            logger.warning("the log %s cannot be read: %s", path, error.strerror)
    return found.traces


def _time(line: str) -> float | None:
    found = _TIME.match(line)
    if found is None:
        return None
    try:
        zone = (found[2] or "Z").replace("Z", "+00:00")
        return datetime.fromisoformat(found[1] + zone).timestamp()
    except ValueError:
        return None


def last_values(points: Sequence[Point]) -> dict[int, Point]:
    """By step, in its order; of a step that was done again, the last one."""
    found = {point.step: point for point in points if point.step is not None}
    return dict(sorted(found.items()))


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most about `most` points that look the same when drawn: of each bucket the first, least, greatest and last."""
    if len(points) <= most:
        return list(points)
    buckets = max(1, most // 4)
    size = len(points) / buckets
    made: list[tuple[float, float]] = []
    for number in range(buckets):
        low, high = int(number * size), int((number + 1) * size)
        part = range(low, high)
        kept = {low, high - 1, min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
        made.extend(points[index] for index in sorted(kept))
    return made
