"""The attempts of a job as rows of a table: from the rehearsal's outcome where there is one, else from the ledgers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from moorage.contract.goodput import AttemptTime, Goodput
from moorage.contract.ledger import Event, Record
from moorage.rehearsal.traces import Traces


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    """started, ended: seconds since the job began. first: steps done when it began to train. last: when it ended.

    replayed: steps it did that were done before. ended_by: in words. grace_used: seconds from SIGTERM to the end, None
    where none was sent or nobody looked. codes: by host.
    """

    number: int
    started: float
    ended: float
    first: int | None
    last: int | None
    replayed: int
    ended_by: str
    grace_used: float | None
    codes: Mapping[str, int]
    saves: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "codes": dict(self.codes)}


def attempt_rows(
    records: Sequence[Record],
    goodput: Goodput | None,
    outcome: Sequence[Mapping[str, Any]],
    traces: Traces,
    begun: float,
) -> tuple[AttemptRow, ...]:
    """outcome: its `attempts`, as JSON. begun: seconds since 1970."""
    rows = [_from_outcome(one, begun) for one in outcome] or _from_ledger(records, begun)
    _steps(rows, goodput, by_launch=bool(outcome))
    if goodput is None and not any(row["last"] for row in rows):
        _steps_of_traces(rows, traces)
    best = 0
    for row in rows:
        first, last = row["first"], row["last"]
        row["replayed"] = max(0, min(best, last) - first) if first is not None and last is not None else 0
        best = max(best, last or 0)
    saves = [event["time"] - begun for event in _once(records, "save")]
    for row in rows:
        row["saves"] = sum(row["started"] <= time <= row["ended"] for time in saves)
    return tuple(AttemptRow(**row) for row in rows)


def _from_outcome(one: Mapping[str, Any], begun: float) -> dict[str, Any]:
    first = one.get("first")
    return {
        "number": int(one["number"]), "started": one["started"] - begun, "ended": one["ended"] - begun,
        # The outcome has the first step that was seen; what was done before it is one less.
        "first": first - 1 if first else first, "last": one.get("last"),
        "ended_by": str(one["ended_by"]), "grace_used": one.get("grace_used"), "codes": dict(one.get("codes") or {}),
    }  # fmt: skip


def _from_ledger(records: Sequence[Record], begun: float) -> list[dict[str, Any]]:
    rows = []
    for number, (_, group) in enumerate(groupby(records, key=lambda record: record.key), 1):
        attempt = [record for record in group if record.events]
        if not attempt:
            continue
        times = [event["time"] for record in attempt for event in record.events]
        stops = [event["time"] for record in attempt for event in record.events if event["event"] == "stop"]
        leaves = {record.host: event for record in attempt for event in record.events if event["event"] == "leave"}
        rows.append(
            {
                "number": number, "started": min(times) - begun, "ended": max(times) - begun,
                "first": None, "last": None,
                "ended_by": _ended_by([event for record in attempt for event in record.events]),
                "grace_used": max(times) - min(stops) if stops else None,
                "codes": {host: int(event.get("code") or 0) for host, event in leaves.items()},
            }
        )  # fmt: skip
    return rows


def _ended_by(events: Sequence[Event]) -> str:
    kinds = {event["event"] for event in events}
    if "failed" in kinds or "lost" in kinds:
        return "failed"
    if "stop" in kinds:
        return "stop"
    if "finished" in kinds or any(event["event"] == "leave" and event.get("code") == 0 for event in events):
        return "finished"
    return "vanished"


def _steps(rows: Sequence[dict[str, Any]], goodput: Goodput | None, *, by_launch: bool) -> None:
    """What the ledger says of steps is exact: it goes before what was seen in a log."""
    if goodput is None:
        return
    groups: list[list[AttemptTime]] = [[attempt] for attempt in goodput.attempts]
    if by_launch:
        groups = [list(group) for _, group in groupby(goodput.attempts, key=lambda attempt: attempt.launch)]
    if len(groups) != len(rows):
        return
    for row, group in zip(rows, groups, strict=True):
        first = [attempt.first for attempt in group if attempt.first is not None]
        last = [attempt.last for attempt in group if attempt.last is not None]
        row["first"], row["last"] = (min(first), max(last)) if first and last else (row["first"], row["last"])


def _steps_of_traces(rows: Sequence[dict[str, Any]], traces: Traces) -> None:
    for number, row in enumerate(rows, 1):
        steps = [
            point.step for points in traces.values() for point in points
            if point.attempt == number and point.step is not None
        ]  # fmt: skip
        if steps:
            row["first"], row["last"] = max(0, min(steps) - 1), max(steps)


def _once(records: Sequence[Record], kind: str) -> list[Event]:
    """Events that every host writes, told once for each attempt and step."""
    found: dict[tuple[object, ...], Event] = {}
    for record in records:
        for event in record.events:
            if event["event"] == kind:
                found.setdefault((record.key, event.get("step")), event)
    return list(found.values())
