"""What lies in the folder of a job that a report can be made of, read once."""

from __future__ import annotations

import bisect
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moorage.contract import ledger
from moorage.contract.ledger import Record, read_ledger
from moorage.rehearsal.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    Faulted,
    Interrupted,
    Note,
    Synced,
    read_events,
)
from moorage.rehearsal.prices import Bill, Prices
from moorage.rehearsal.timeline import Mark, Presence, Span, marks_of, one_clock
from moorage.rehearsal.traces import Traces, traces_of, traces_of_logs

EVENTS, OUTCOME = "events.jsonl", "outcome.json"
_DEPTH = 5
_NOT_LOOKED_INTO = frozenset({"input", "code", "model", "data"})
"""Of a job folder: what may be large, and tells nothing."""

logger = logging.getLogger("moorage")


class Found:
    """What lies in the folder, read once."""

    def __init__(self, folder: Path, logs: Sequence[Path]) -> None:
        places = list(_places(folder))
        self.events: list[Event] = read_events(folder / EVENTS) if (folder / EVENTS).is_file() else []
        self.outcome = _object(folder / OUTCOME)
        self._failures = [path for place in places if (path := place / "failure").is_file()]
        if self.events and not logs:
            self.traces = traces_of(self.events)
        else:
            self.traces = traces_of_logs(logs or [log for place in places for log in sorted(place.glob("*.log"))])

        records = one_clock(_kept(folder) or _union([place for place in places if (place / ledger.FOLDER).is_dir()]))
        self.records = _with_last_words(records, self.traces)

    def extent(self) -> tuple[float, float]:
        times = [event["time"] for record in self.records for event in record.events]
        times += [event.time for event in self.events]
        times += [point.time for points in self.traces.values() for point in points if point.time is not None]
        for entry in self.outcome.get("transitions") or ():
            times += [float(entry[key]) for key in ("start", "end") if entry.get(key)]
        return (min(times), max(times)) if times else (0.0, 0.0)

    def presences(self) -> list[Presence]:
        started = [event for event in self.events if isinstance(event, AttemptStarted)]
        ended = {event.number: event.time for event in self.events if isinstance(event, AttemptEnded)}
        last = max((event.time for event in self.events), default=0.0)
        return [
            Presence(number=one.number, started=one.time, ended=ended.get(one.number, last), hosts=tuple(one.hosts))
            for one in started
        ]

    def phases(self, end: float) -> list[Span]:
        return [
            Span(
                kind=str(entry["status"]), start=float(entry["start"]), end=float(entry["end"] or end),
                text=str(entry.get("message") or ""),
            )
            for entry in self.outcome.get("transitions") or ()
        ]  # fmt: skip

    def marks(self) -> list[Mark]:
        seen = [mark for event in self.events for mark in _marks(event)]
        return sorted([*marks_of(self.records), *seen], key=lambda mark: mark.time)

    def given(self) -> dict[str, str]:
        """What the job was given at its last start, and its world size; what the platform knows of it goes first."""
        platform = self.outcome.get("given") or {}
        starts = [event for record in self.records for event in record.events if event["event"] == "start"]
        last = next((start for start in reversed(starts) if isinstance(start.get("given"), dict)), None)
        if last is None:
            given = {**(self.outcome.get("hyperparameters") or {}), **platform}
        else:
            given = {**platform, **last["given"], "world_size": last["world_size"]}
        return {str(name): str(value) for name, value in given.items()}

    def bill(self, prices: Prices | None) -> Bill | None:
        """Of a job of the platform that is over. prices: for where the platform was not asked."""
        bill = self.outcome.get("bill")
        if not bill:
            return None
        per_hour, instances = bill["per_hour"], int(bill["instances"])
        if per_hour is None and prices is not None:
            per_hour = prices.on_demand * instances
        return Bill(seconds=float(bill["seconds"]), instances=instances, per_hour=per_hour)

    def failure(self) -> str:
        if self.outcome:
            return str(self.outcome.get("failure_reason") or "")
        texts = [path.read_text(encoding="utf-8", errors="replace").strip() for path in self._failures]
        return next((text for text in texts if text), "")


def _marks(event: Event) -> Iterator[Mark]:
    if isinstance(event, Interrupted):
        how = "without a signal" if event.hard else "SIGTERM"
        text = f"interruption {event.number} ({how}){_at(event.step)}: {event.why}".rstrip(": ")
        yield Mark(kind="interruption", time=event.time, text=text, host=event.host)
    elif isinstance(event, Faulted):
        over = " is over" if event.over else _at(event.step)
        yield Mark(kind="fault", time=event.time, text=f"{event.kind}{over}", host=event.host)
    elif isinstance(event, Synced) and event.action == "cut":
        yield Mark(kind="cut", time=event.time, text=f"the upload of {event.file} was cut", host=event.host)
    elif isinstance(event, Note) and event.level == "warning":
        yield Mark(kind="warning", time=event.time, text=event.text)


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step}"


def _places(folder: Path) -> Iterator[Path]:
    """The folder and those in it where something may be told of the job."""
    for root, names, _ in os.walk(folder):
        here = Path(root)
        yield here
        deep = len(here.relative_to(folder).parts)
        names[:] = sorted(
            name for name in names
            if deep < _DEPTH and name not in _NOT_LOOKED_INTO and name != ledger.FOLDER and not name.startswith("step-")
        )  # fmt: skip


def _kept(folder: Path) -> list[Record]:
    """Of a rehearsal, which keeps the ledger of each attempt apart, also of one whose upload never came."""
    found = [
        replace(record, launch=int(place.name))
        for place in (folder / ledger.FOLDER).glob("*")
        if place.name.isdigit()
        for record in read_ledger(place)
    ]
    return sorted(found, key=lambda record: record.key)


def _union(folders: Sequence[Path]) -> list[Record]:
    """The attempts of all ledgers; of copies of one, that which knows most."""
    best: dict[tuple[str, int, int], Record] = {}
    for folder in folders:
        for record in read_ledger(folder):
            key = (record.host, *record.key)
            if key not in best or len(record.events) > len(best[key].events):
                best[key] = record
    return sorted(best.values(), key=lambda record: record.key)


def _with_last_words(records: Sequence[Record], traces: Traces) -> list[Record]:
    """A host that vanished told its ledger nothing of its last steps; the log may know better."""
    told = sorted(
        (point.time, point.step) for points in traces.values() for point in points
        if point.time is not None and point.step is not None
    )  # fmt: skip
    times = [time for time, _ in told]
    starts = sorted(record.events[0]["time"] for record in records)

    def whole(record: Record) -> Record:
        kinds, end = {event["event"] for event in record.events}, record.events[-1]["time"]
        over = next((start for start in starts if start > end), math.inf)
        last = bisect.bisect_left(times, over) - 1
        if "down" in kinds or "training" not in kinds or last < 0 or times[last] <= end:
            return record
        return replace(
            record, events=(*record.events, {"event": "progress", "time": times[last], "step": told[last][1]})
        )

    return [whole(record) for record in records]


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read, and is left out: %s", path, error)
        return {}
    return value if isinstance(value, dict) else {}
