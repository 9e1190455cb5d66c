"""What came of a job, as lines for a terminal: attempts, a timeline in plain text, seconds, metrics, warnings.

Of at most about 100 columns, with ASCII only besides what the job itself brings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from moorage.rehearsal.outcome import Outcome
from moorage.rehearsal.prices import Savings
from moorage.rehearsal.report import Report
from moorage.rehearsal.report_text import counted, money_text, named, number_text, percent_text, seconds_text

WIDTH = 60
_ENDS = {
    "interruption": "x", "vanished": "x", "fault": "!", "failed": "!", "stop": "#", "max-run": "#", "max-wait": "#",
    "finished": "|",
}  # fmt: skip
_LEGEND = {"x": "interrupted", "!": "failed", "#": "stopped", "|": "finished"}


class AnAttempt(Protocol):
    """As an outcome has it, or a report. started, ended: seconds since a moment that all share."""

    @property
    def number(self) -> int: ...
    @property
    def started(self) -> float: ...
    @property
    def ended(self) -> float: ...
    @property
    def ended_by(self) -> str: ...
    @property
    def first(self) -> int | None: ...
    @property
    def last(self) -> int | None: ...
    @property
    def grace_used(self) -> float | None: ...
    @property
    def codes(self) -> Mapping[str, int]: ...


def summary(outcome: Outcome) -> Iterator[str]:
    """Of a rehearsal that has just ended."""
    yield from _head(outcome.name, outcome.status, outcome.secondary, outcome.failure_reason, outcome.attempts)
    yield ""
    yield from named(_facts(outcome))
    yield from (f"warning: {text}" for text in outcome.warnings)


def report_summary(report: Report) -> Iterator[str]:
    """Of a job of which something lies in a folder."""
    status = report.status or "as its ledger tells"
    yield from _head(report.name, status, report.secondary, report.failure, report.attempts)
    yield ""
    yield from named(_report_facts(report))
    yield from (f"warning: {text}" for text in report.warnings)
    yield from report.notes


def _head(name: str, status: str, secondary: str, failure: str, attempts: Sequence[AnAttempt]) -> Iterator[str]:
    both = status if secondary in (status, "") else f"{status}, {secondary}"
    yield f"{name}: {both}, after {counted(len(attempts), 'attempt')}"
    for line in failure.splitlines():
        yield f"  {line}"
    if not attempts:
        return
    yield ""
    yield from _table(attempts)
    yield ""
    line = timeline(attempts)
    yield f"  {line}"
    used = {end: text for end, text in _LEGEND.items() if end in line}
    yield f"  = training, . waiting, {', '.join(f'{end} {text}' for end, text in used.items())}"


def _table(attempts: Sequence[AnAttempt]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("attempt", "steps", "time", "ended by", "grace used", "exit codes")]
    rows += [_row(attempt) for attempt in attempts]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _row(attempt: AnAttempt) -> tuple[str, ...]:
    steps = "none seen" if attempt.last is None else f"{attempt.first}-{attempt.last}"
    grace = "" if attempt.grace_used is None else seconds_text(attempt.grace_used)
    codes = sorted(set(attempt.codes.values()))
    same = f"{codes[0]}" if len(codes) == 1 else ", ".join(f"{host} {code}" for host, code in attempt.codes.items())
    return (
        str(attempt.number), steps, seconds_text(attempt.ended - attempt.started), attempt.ended_by, grace, same,
    )  # fmt: skip


def timeline(attempts: Sequence[AnAttempt], width: int = WIDTH) -> str:
    """`=====x..=======x.====|`: one character for each part of the time from the first start to the last end."""
    start, end = attempts[0].started, attempts[-1].ended
    size = (end - start) / width or 1.0
    cells = ["."] * width
    ends = {}
    for attempt in attempts:
        first = min(int((attempt.started - start) / size), width - 1)
        last = max(first, min(int((attempt.ended - start) / size), width - 1))
        cells[first:last] = "=" * (last - first)
        ends[last] = _ENDS.get(attempt.ended_by, "#")
    return "".join(ends.get(number, cell) for number, cell in enumerate(cells))


def _facts(outcome: Outcome) -> Iterator[tuple[str, str]]:
    yield "training", f"{seconds_text(outcome.training_seconds)}, billable {seconds_text(outcome.billable_seconds)}"
    for what, (made, asked) in (("interruptions", outcome.interruptions), ("faults", outcome.faults)):
        if asked:
            yield what, f"{made} of {asked}"
    if outcome.metrics:
        yield "metrics", ", ".join(f"{name} {count} x" for name, count in outcome.metrics.items())
    share = (outcome.goodput or {}).get("goodput")
    if isinstance(share, int | float):
        yield "goodput", f"{number_text(100 * share)} %"
    for what, archive in (("model", outcome.model), ("output", outcome.output)):
        if archive is not None:
            yield what, str(archive)
    yield "folder", str(outcome.folder)


def _report_facts(report: Report) -> Iterator[tuple[str, str]]:
    yield "hosts", ", ".join(report.hosts)
    yield "time", f"{seconds_text(report.wall)}, billable {seconds_text(report.billable)}"
    again = f", {report.replayed} done again" if report.replayed else ""
    yield "steps", f"{report.steps}{again}"
    if report.interruptions:
        yield "interruptions", str(report.interruptions)
    if report.goodput is not None:
        yield "goodput", percent_text(report.goodput.share, 1)
    for name, points in report.traces.items():
        if name not in ("step", "epoch"):
            yield name, f"{points[-1].text} at the end, {counted(len(points), 'value')}"
    if report.savings is not None:
        yield "spot", savings_text(report.savings)
    if report.cost is not None and report.bill is not None:
        yield "cost", f"{money_text(report.cost)}, at {money_text(report.bill.per_hour or 0)} an hour for all"


def savings_text(savings: Savings) -> str:
    """What the prices given make of it."""
    sign = "saved" if savings.saved >= 0 else "lost"
    share = percent_text(abs(savings.share))
    return (
        f"{money_text(savings.spot_cost)} against {money_text(savings.on_demand_cost)} on demand: "
        f"{money_text(abs(savings.saved))} {sign}, {share}; the interruptions cost "
        f"{money_text(savings.interruptions_cost)} of it"
    )
