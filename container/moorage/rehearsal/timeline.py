"""When what happened: each host's time in spans, from the ledgers, and what the rehearsal itself saw.

Spans of a lane never overlap. Kinds: start_up, training, replayed (steps done again), pause (training waited for a
save), evaluation, ending, and running where nobody told more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from moorage.contract.ledger import Event, Record

APART = 5.0
"""Seconds: hosts of an attempt start together, so clocks that say otherwise are wrong by that much."""

logger = logging.getLogger("moorage")


@dataclass(frozen=True, kw_only=True)
class Span:
    """Times in seconds since 1970, or since the job began: as the one who has it says."""

    kind: str
    start: float
    end: float
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A moment: save, resume, stop, failure, interruption, fault or upload. host: None is the whole job."""

    kind: str
    time: float
    text: str
    host: str | None = None


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One host, and those whose time went alike."""

    host: str
    spans: tuple[Span, ...]
    alike: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Presence:
    """One start of the containers of a job, as the rehearsal saw it."""

    number: int
    started: float
    ended: float
    hosts: tuple[str, ...]


def one_clock(records: Sequence[Record]) -> list[Record]:
    """The records with times that can be drawn on one axis: hosts of an attempt start together, attempts in order."""
    made: list[Record] = []
    end = float("-inf")
    for _, group in groupby((record for record in records if record.events), key=lambda record: record.key):
        attempt = list(group)
        start = attempt[0].events[0]["time"]
        attempt = [_moved(record, start - record.events[0]["time"], least=APART) for record in attempt]
        attempt = [_moved(record, max(0.0, end - start), least=APART) for record in attempt]
        end = max(end, *(event["time"] for record in attempt for event in record.events))
        made.extend(attempt)
    return made


def _moved(record: Record, seconds: float, *, least: float) -> Record:
    if abs(seconds) < least:
        return record
    logger.info("the clock of %s is taken to be %.0f s off", record.host, -seconds)
    return replace(record, events=tuple({**event, "time": event["time"] + seconds} for event in record.events))


def lanes_of(records: Sequence[Record], presences: Sequence[Presence] = ()) -> list[Lane]:
    """One for each host, in the order of their names. records: on one clock, in their order."""
    spans: dict[str, list[Span]] = {}
    best = 0
    for _, group in groupby((record for record in records if record.events), key=lambda record: record.key):
        done = best
        for record in group:
            made, last = _spans(record, best)
            spans.setdefault(record.host, []).extend(made)
            done = max(done, last)
        best = done
    for presence in presences:
        for host in presence.hosts:
            spans[host] = _with_presence(spans.get(host, []), presence)
    return [Lane(host=host, spans=_apart(spans[host])) for host in sorted(spans, key=natural)]


def _with_presence(spans: list[Span], presence: Presence) -> list[Span]:
    """The container was there before its ledger began, and after it ended."""
    start, end = presence.started, presence.ended
    inside = [span for span in spans if span.start < end and span.end > start]
    if not inside:
        return [*spans, Span(kind="running", start=start, end=end, text=f"attempt {presence.number}")]
    first, last = min(span.start for span in inside), max(span.end for span in inside)
    around = [
        Span(kind="start_up", start=start, end=first, text="the container starts"),
        Span(kind="ending", start=last, end=end, text="the container ends"),
    ]
    return [*spans, *(span for span in around if span.end > span.start)]


def _apart(spans: Iterable[Span]) -> tuple[Span, ...]:
    made: list[Span] = []
    for span in sorted(spans, key=lambda one: one.start):
        start = max(span.start, made[-1].end) if made else span.start
        if span.end > start:
            made.append(replace(span, start=start))
    return tuple(made)


def _spans(record: Record, before: int) -> tuple[list[Span], int]:
    """The spans of one attempt on one host, and the steps done at its end. before: the most steps done earlier."""
    events = record.events
    start, end = events[0]["time"], max(event["time"] for event in events)
    begun = next((event for event in events if event["event"] == "training"), None)
    what = f"launch {record.launch}, attempt {record.attempt}"
    if begun is None:
        ranks = any(event["event"] == "resume" for event in events)
        return [Span(kind="start_up" if ranks else "running", start=start, end=end, text=what)], 0
    stop = _training_ends(events, end)
    points = _points(events, begun["time"], stop)
    spans = [Span(kind="start_up", start=start, end=begun["time"], text=what)]
    spans += _breaks(events, stop)
    spans.append(Span(kind="ending", start=max(stop, begun["time"]), end=end, text=what))
    spans += _between(spans, points, before, what)
    return spans, points[-1][1]


def _training_ends(events: Sequence[Event], end: float) -> float:
    """When the last step was done; where nobody said that, the last word."""
    for event in events:
        at = event.get("at") if event["event"] == "down" else None
        if isinstance(at, (int, float)) and 0 < at < end:
            return float(at)
    return min((event["time"] for event in events if event["event"] in ("down", "leave", "finished")), default=end)


def _points(events: Sequence[Event], begun: float, stop: float) -> list[tuple[float, int]]:
    """(time, steps done) as far as known, both rising."""
    points: list[tuple[float, int]] = []
    for event in events:
        step = event.get("step")
        if event["event"] in ("training", "saving", "progress", "evaluating", "down") and type(step) is int:
            moment = stop if event["event"] == "down" else event["time"]
            if not points or (moment >= points[-1][0] and step >= points[-1][1]):
                points.append((moment, step))
    return points or [(begun, 0)]


def _breaks(events: Sequence[Event], stop: float) -> list[Span]:
    """Evaluations and pauses: no steps are done in them."""
    made, opened = [], None
    for event in events:
        moment = min(event["time"], stop)
        if event["event"] == "evaluating":
            opened = moment
        elif event["event"] == "evaluated" and opened is not None:
            made.append(Span(kind="evaluation", start=opened, end=moment, text=f"after step {event.get('step')}"))
            opened = None
        elif event["event"] == "saving" and isinstance(event.get("blocked"), (int, float)):
            made.append(Span(kind="pause", start=moment - event["blocked"], end=moment, text=f"step {event['step']}"))
    return made


def _between(taken: Sequence[Span], points: Sequence[tuple[float, int]], before: int, what: str) -> list[Span]:
    """What is left between the taken spans: training, and first the steps that are done again."""
    known = _apart(taken)
    turn = _moment_of(before, points) if before > points[0][1] else points[0][0]
    made = []
    for one, other in pairwise(known):
        for kind, start, end in (
            ("replayed", one.end, min(other.start, turn)), ("training", max(one.end, turn), other.start),
        ):  # fmt: skip
            if end > start:
                made.append(Span(kind=kind, start=start, end=end, text=what))
    return made


def _moment_of(step: int, points: Sequence[tuple[float, int]]) -> float:
    """When `step` steps were done, by the two points around it; the last one where it never came so far."""
    for (start, low), (end, high) in pairwise(points):
        if low <= step <= high and high > low:
            return start + (end - start) * (step - low) / (high - low)
    return points[-1][0]


_MARKS = {"save": "save", "save-failed": "failure", "failed": "failure", "lost": "failure", "resume": "resume",
          "stop": "stop"}  # fmt: skip


def marks_of(records: Sequence[Record]) -> list[Mark]:
    """Moments that the ledgers tell of, in the order of time; what all hosts do together is told once."""
    found: dict[tuple[object, ...], Mark] = {}
    for record in records:
        for event in record.events:
            kind = _MARKS.get(event["event"])
            if kind is None:
                continue
            shared = kind in ("save", "resume", "stop")
            key = (kind, record.key, event.get("step"), None if shared else record.host)
            mark = Mark(
                kind=kind, time=event["time"], text=_mark_text(event), host=None if shared else record.host
            )  # fmt: skip
            found.setdefault(key, mark)
    return sorted(found.values(), key=lambda mark: mark.time)


def _mark_text(event: Event) -> str:
    step = event.get("step")
    match event["event"]:
        case "save":
            return f"step {step} saved"
        case "save-failed":
            return f"step {step} could not be saved: {event.get('error', '')}"
        case "resume":
            return f"went on from step {step}"
        case "stop":
            return "asked to stop"
        case "lost":
            return f"lost {event.get('host', 'a host')}"
        case _:
            rank = event.get("rank")
            who = f"rank {rank}" if rank is not None else "the host"
            return f"{who} failed with exit code {event.get('code')}: {event.get('message', '')}"


def folded(lanes: Sequence[Lane], most: int) -> list[Lane]:
    """At most so many lanes, where that can be: hosts whose spans are of the same kinds in the same order are one."""
    if len(lanes) <= most:
        return list(lanes)
    groups: dict[tuple[str, ...], list[Lane]] = {}
    for lane in lanes:
        shape = tuple(span.kind for span in lane.spans if span.kind != "pause")
        groups.setdefault(shape, []).append(lane)
    return [replace(group[0], alike=tuple(lane.host for lane in group[1:])) for group in groups.values()]


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """algo-2 before algo-10."""
    parts: list[tuple[int, int | str]] = []
    for digits, group in groupby(name, key=str.isdigit):
        text = "".join(group)
        parts.append((0, int(text)) if digits and text.isascii() else (1, text))
    return tuple(parts)
