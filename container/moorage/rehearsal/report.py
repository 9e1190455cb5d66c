"""What there is to tell of a job, found in its folder: a rehearsal's, that of one host, or a checkpoint prefix.

The ledgers tell of attempts, hosts, saves and where the time went; events.jsonl and outcome.json of what the rehearsal
did and saw; logs of the metrics. Each may be missing: then the report says less, and why.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moorage.contract.goodput import Goodput, measure
from moorage.errors import ConfigError
from moorage.rehearsal.prices import Bill, Prices, Savings
from moorage.rehearsal.report_attempts import AttemptRow, attempt_rows
from moorage.rehearsal.report_folder import Found
from moorage.rehearsal.timeline import Lane, Mark, Span, lanes_of
from moorage.rehearsal.traces import Point, Traces, last_values, thinned

MOST_POINTS = 2000
"""Of one metric in the JSON: no screen shows more."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Times are in seconds since the job began, which was at `begun` (seconds since 1970).

    status, secondary: as DescribeTrainingJob has them, of a rehearsal; else "" and how the last attempt ended.
    billable: seconds in which there were instances. marks: what happened to the job, interruptions of the rehearsal
    included. given: hyperparameters and settings of the last start, as the ledger has them. counts: how often each
    metric regex matched. notes: what this report lacks, and why. arn, bill: of a job of the platform, else "" and None.
    """

    name: str
    arn: str
    folder: Path
    status: str
    secondary: str
    failure: str
    begun: float
    wall: float
    billable: float
    hosts: tuple[str, ...]
    given: Mapping[str, str]
    attempts: tuple[AttemptRow, ...]
    phases: tuple[Span, ...]
    lanes: tuple[Lane, ...]
    marks: tuple[Mark, ...]
    traces: Traces
    counts: Mapping[str, int]
    goodput: Goodput | None
    savings: Savings | None
    bill: Bill | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Done at the end, as far as anybody told."""
        told = [attempt.last for attempt in self.attempts if attempt.last is not None]
        return max([*told, self.goodput.steps if self.goodput else 0])

    @property
    def replayed(self) -> int:
        """Steps that were done again, over all attempts."""
        return sum(attempt.replayed for attempt in self.attempts)

    @property
    def interruptions(self) -> int:
        """Those that a rehearsal made, or the platform tells of."""
        made = sum(mark.kind == "interruption" for mark in self.marks)
        return made or sum(phase.kind == "Interrupted" for phase in self.phases)

    @property
    def cost(self) -> float | None:
        """What it came to, or what it would have on Spot; None where no price is known."""
        if self.bill is not None:
            return self.bill.cost
        return self.savings.spot_cost if self.savings else None

    @property
    def restarts(self) -> int:
        return max(0, len(self.attempts) - 1)

    def to_json(self) -> dict[str, Any]:
        """What `report_data` describes."""
        return {
            "name": self.name, "arn": self.arn, "folder": None if self.arn else str(self.folder),
            "status": self.status, "secondary": self.secondary,
            "failure": self.failure, "begun": self.begun, "wall_seconds": self.wall, "billable_seconds": self.billable,
            "hosts": list(self.hosts), "given": dict(self.given), "steps": self.steps, "replayed_steps": self.replayed,
            "interruptions": self.interruptions, "restarts": self.restarts,
            "attempts": [attempt.to_json() for attempt in self.attempts],
            "phases": [asdict(span) for span in self.phases],
            "lanes": [{"host": lane.host, "spans": [asdict(span) for span in lane.spans]} for lane in self.lanes],
            "marks": [asdict(mark) for mark in self.marks],
            "metrics": {name: metric_json(points, self.begun) for name, points in self.traces.items()},
            "regex_matches": dict(self.counts),
            "goodput": self.goodput.to_json() if self.goodput else None,
            "savings": self.savings.to_json() if self.savings else None,
            "bill": {**asdict(self.bill), "cost": self.bill.cost} if self.bill else None,
            "warnings": list(self.warnings), "notes": list(self.notes),
        }  # fmt: skip


def read_report(folder: Path, *, prices: Prices | None = None, logs: Sequence[Path] = ()) -> Report:
    """logs: files with the job's output, in its order; none are needed where the folder has them.

    Raises ConfigError where there is neither a ledger, nor a rehearsal, nor a metric.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", fix="name the job's folder")
    found = Found(folder, logs)
    if not (found.records or found.events or found.outcome or found.traces):
        raise ConfigError(
            f"{folder} tells nothing of a job",
            why="it has no ledger beside checkpoints, no events.jsonl of a rehearsal, and no log with metric lines",
            fix="name the folder of a rehearsal, of a job, or of its checkpoints; --log FILE names a log elsewhere",
        )
    goodput = measure(found.records)
    begun, end = found.extent()
    lanes = lanes_of(found.records, found.presences())
    billable = float(found.outcome.get("billable_seconds") or (goodput.wall - goodput.parts.idle if goodput else 0.0))
    attempts = attempt_rows(found.records, goodput, found.outcome.get("attempts") or (), found.traces, begun)
    bill = found.bill(prices)
    return Report(
        name=str(found.outcome.get("name") or folder.resolve().name),
        arn=str(found.outcome.get("arn") or ""),
        folder=folder,
        status=str(found.outcome.get("status") or ""),
        secondary=str(found.outcome.get("secondary") or (attempts[-1].ended_by if attempts else "")),
        failure=found.failure(),
        begun=begun,
        wall=end - begun,
        billable=billable,
        hosts=tuple(lane.host for lane in lanes),
        given=found.given(),
        attempts=attempts,
        phases=tuple(_since(span, begun) for span in found.phases(end)),
        lanes=tuple(replace(lane, spans=tuple(_since(span, begun) for span in lane.spans)) for lane in lanes),
        marks=tuple(replace(mark, time=mark.time - begun) for mark in found.marks()),
        traces=found.traces,
        counts=found.outcome.get("metrics") or {},
        goodput=goodput,
        savings=None if bill else _savings(prices, goodput, billable, len(lanes)),
        bill=bill,
        warnings=tuple(map(str, found.outcome.get("warnings") or ())),
        notes=tuple(_notes(found, goodput, prices)),
    )


def report_data(folder: Path, *, prices: Prices | None = None, logs: Sequence[Path] = ()) -> dict[str, Any]:
    """The report as plain data for json.dumps(..., allow_nan=False). Times in seconds since `begun`, unless said.

    | key | what |
    |---|---|
    | name, arn, status, secondary, failure | as DescribeTrainingJob has them; "" where nobody told |
    | folder | where it lies; null for a job of the platform |
    | begun | seconds since 1970 |
    | given | hyperparameters, settings that are not the default, hosts, instance_type; secrets redacted |
    | wall_seconds, billable_seconds, hosts, steps, replayed_steps, interruptions, restarts | of the whole job |
    | attempts | number, started, ended, first and last (steps done), replayed, ended_by, grace_used, codes, saves |
    | phases | SecondaryStatusTransitions: kind, start, end, text |
    | lanes | of each host: spans of kind, start, end, text |
    | marks | kind, time, text, host: saves, resumes, stops, failures, interruptions, faults |
    | metrics | of each name: count, by_step, by_time (pairs; thinned to 2000, extremes kept), last; not finite: null |
    | regex_matches | how often each metric regex matched |
    | goodput | as `moorage goodput --json`; null without moorage.start() |
    | savings | costs for the prices given; null without |
    | bill | seconds, instances, per_hour, cost of a job of the platform; else null |
    | warnings, notes | lines |

    Raises as `read_report`.
    """
    return read_report(folder, prices=prices, logs=logs).to_json()


def metric_json(points: Sequence[Point], begun: float) -> dict[str, Any]:
    return {
        "count": len(points),
        "last": _finite(points[-1].value) if points else None,
        "by_step": thinned(by_step(points), MOST_POINTS),
        "by_time": thinned([pair for part in by_time(points, begun) for pair in part], MOST_POINTS),
    }


def by_step(points: Sequence[Point]) -> list[tuple[float, float]]:
    """(step, value): the last of each step, those that can be drawn."""
    last = last_values(points)
    return [(step, value) for step, point in last.items() if math.isfinite(value := point.value)]


def by_time(points: Sequence[Point], begun: float, cuts: Sequence[float] = ()) -> list[list[tuple[float, float]]]:
    """(seconds since `begun`, value), in one part for each attempt. cuts: when an attempt ended, as the values are."""
    parts: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for point in points:
        if point.time is not None and math.isfinite(value := point.value):
            moment = point.time - begun
            parts.setdefault((point.attempt, bisect.bisect_left(cuts, moment)), []).append((moment, value))
    return list(parts.values())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _since(span: Span, begun: float) -> Span:
    return replace(span, start=span.start - begun, end=span.end - begun)


def _savings(prices: Prices | None, goodput: Goodput | None, billable: float, hosts: int) -> Savings | None:
    if prices is None or goodput is None or not billable:
        return None
    starts = [attempt.parts.start_up for attempt in goodput.attempts if attempt.first is not None]
    parts = goodput.parts
    alone = parts.useful + parts.pause + parts.evaluation + (starts or [0.0])[0] + goodput.attempts[-1].parts.ending
    # The containers were there for longer than the ledger knows; they would have been in one attempt, too.
    outside = max(0.0, billable - (goodput.wall - parts.idle)) / len({one.launch for one in goodput.attempts})
    return Savings(prices=prices, hosts=hosts or 1, billable=billable, uninterrupted=min(billable, alone + outside))


def _notes(found: Found, goodput: Goodput | None, prices: Prices | None) -> Iterator[str]:
    if goodput is None:
        yield "Where the time went is not known: a program without moorage.start() says nothing of its steps."
        if prices is not None:
            yield "What Spot would have saved is not known either, for the same reason."
    if not found.traces:
        yield "No metrics: no log here has a metric line, and no metric regex matched. --log FILE names a log."
    elif all(point.time is None for points in found.traces.values() for point in points):
        yield "The log's lines have no times: metrics are drawn over steps only."
