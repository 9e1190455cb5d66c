"""What came of a rehearsal, as lines for a terminal: attempts, a timeline in plain text, seconds, metrics, warnings."""

from __future__ import annotations

from collections.abc import Iterator

from moorage.rehearsal.outcome import Attempt, Outcome
from moorage.rehearsal.report_text import counted, number_text, seconds_text

WIDTH = 60
_ENDS = {
    "interruption": "x", "fault": "!", "failed": "!", "stop": "#", "max-run": "#", "max-wait": "#", "finished": "|",
}  # fmt: skip
_LEGEND = {"x": "interrupted", "!": "failed", "#": "stopped", "|": "finished"}


def summary(outcome: Outcome) -> Iterator[str]:
    """Lines of at most about 100 columns, with ASCII only besides what the job itself brings."""
    status = outcome.status if outcome.status == outcome.secondary else f"{outcome.status}, {outcome.secondary}"
    yield f"{outcome.name}: {status}, after {counted(len(outcome.attempts), 'attempt')}"
    for line in outcome.failure_reason.splitlines():
        yield f"  {line}"
    yield ""
    yield from _attempts(outcome)
    if line := timeline(outcome):
        yield ""
        yield f"  {line}"
        used = {end: text for end, text in _LEGEND.items() if end in line}
        yield f"  = training, . waiting, {', '.join(f'{end} {text}' for end, text in used.items())}"
    yield ""
    yield from (f"  {name:<14} {text}" for name, text in _facts(outcome))
    yield from (f"warning: {text}" for text in outcome.warnings)


def _attempts(outcome: Outcome) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("attempt", "steps", "time", "ended by", "grace used", "exit codes")]
    rows += [_row(attempt) for attempt in outcome.attempts]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _row(attempt: Attempt) -> tuple[str, ...]:
    steps = "none seen" if attempt.last is None else f"{attempt.first}-{attempt.last}"
    grace = "" if attempt.grace_used is None else seconds_text(attempt.grace_used)
    codes = sorted(set(attempt.codes.values()))
    same = f"{codes[0]}" if len(codes) == 1 else ", ".join(f"{host} {code}" for host, code in attempt.codes.items())
    return (
        str(attempt.number), steps, seconds_text(attempt.ended - attempt.started), attempt.ended_by, grace, same,
    )  # fmt: skip


def timeline(outcome: Outcome, width: int = WIDTH) -> str:
    """`=====x..=======x.====|`: one character for each part of the time from the first start to the last end."""
    if not outcome.attempts:
        return ""
    start, end = outcome.attempts[0].started, outcome.attempts[-1].ended
    size = (end - start) / width or 1.0
    cells = ["."] * width
    ends = {}
    for attempt in outcome.attempts:
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
