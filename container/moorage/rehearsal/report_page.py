"""The report as one HTML page: styles and script in it, nothing fetched, and a policy in it that says so."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from moorage import __version__
from moorage.contract.goodput import Parts
from moorage.rehearsal import report_charts as charts
from moorage.rehearsal.report import Report, by_step, by_time
from moorage.rehearsal.report_text import counted, money_text, number_text, percent_text, seconds_text
from moorage.rehearsal.timeline import Mark, folded
from moorage.rehearsal.traces import Point, thinned

TEMPLATES = Path(__file__).with_name("templates")
MOST_LANES = 16
MOST_CHARTS = 12
MOST_POINTS = 800
"""Of one line: more than a chart is wide on a large screen."""
MOST_ROWS = 60
"""Of the attempts and of the events: the rest is in the JSON."""

SHOWN_MARKS = ("interruption", "failure", "fault", "cut", "warning", "stop", "resume", "save")
PARTS = ("useful", "replayed", "pause", "evaluation", "start_up", "ending", "idle")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric drawn twice, and what a table says of it."""

    name: str
    count: int
    first: str
    last: str
    least: str
    greatest: str
    charts: tuple[charts.LineChart, ...]


def page(report: Report) -> str:
    """HTML. Its size depends little on the length of the job: lines are thinned, extremes kept."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("report.html").render(
        report=report,
        style=stylesheet(),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:",
        version=__version__,
        date=partial(time.strftime, "%Y-%m-%d %H:%M:%S UTC"),
        gmtime=time.gmtime,
        tone=_tone(report),
        status=_status(report),
        timeline=_timeline(report),
        metrics=list(_metrics(report)),
        others=max(0, len(_drawable(report)) - MOST_CHARTS),
        goodput=_goodput(report),
        most_rows=MOST_ROWS,
    )


def template(name: str) -> jinja2.Template:
    """One of the templates of this folder, with the filters they write numbers by."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "seconds": seconds_text,
        "number": number_text,
        "money": money_text,
        "percent": percent_text,
    }
    environment.globals |= {"counted": counted, "kind_text": charts.kind_text, "shape": charts.shape}
    return environment.get_template(name)


def stylesheet() -> Markup:
    return Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))


def write_page(report: Report, path: Path) -> None:
    """Raises OSError."""
    path.write_text(page(report), encoding="utf-8")


def _status(report: Report) -> str:
    if report.status:
        return report.status
    last = report.attempts[-1].ended_by if report.attempts else ""
    known = {"finished": "Completed", "failed": "Failed", "stop": "Stopped", "vanished": "Vanished"}
    return known.get(last, "Unknown")


def _tone(report: Report) -> str:
    return {"Completed": "good", "Failed": "bad"}.get(_status(report), "fair")


def _timeline(report: Report) -> dict[str, Any]:
    marks = [mark for mark in report.marks if mark.kind in SHOWN_MARKS]
    lanes = folded(report.lanes, MOST_LANES)
    kinds = [kind for kind in (*PARTS, "training", "running") if any(
        span.kind == kind for lane in lanes for span in charts.drawn(lane.spans, report.wall)
    )]  # fmt: skip
    # Where nobody told of an interruption, the end of an attempt that was not the last is one.
    cuts = [mark.time for mark in marks if mark.kind == "interruption"] or [
        attempt.ended for attempt in report.attempts[:-1]
    ]
    order = {kind: number for number, kind in enumerate(SHOWN_MARKS)}
    present = sorted({mark.kind for mark in marks}, key=order.__getitem__)
    rows = [
        ("events", [mark for mark in marks if mark.kind != "save"]),
        ("saves", [mark for mark in marks if mark.kind == "save"]),
    ]
    return {
        "axis": charts.time_axis(report.wall),
        "lanes": [(lane, charts.lane_svg(lane, report.wall)) for lane in lanes],
        "rows": [(name, charts.marks_svg(row, report.wall, _row_text(name, row))) for name, row in rows if row],
        "cuts": [round(100 * cut / (report.wall or 1.0), 3) for cut in cuts],
        "kinds": kinds,
        "marks": present,
        "events": [mark for mark in marks if mark.kind != "save"],
    }


def _row_text(name: str, marks: Sequence[Mark]) -> str:
    shown = ", ".join(f"{seconds_text(mark.time)} {mark.text}" for mark in marks[:20])
    return f"{name}: {shown}{', ...' if len(marks) > 20 else ''}"


def _drawable(report: Report) -> list[str]:
    """Losses first, then in the order in which they came."""
    names = [
        name for name, points in report.traces.items()
        if name not in ("epoch", "step") and any(math.isfinite(point.value) for point in points)
    ]  # fmt: skip
    return sorted(names, key=lambda name: "loss" not in name)


def _metrics(report: Report) -> Iterator[Metric]:
    starts = [attempt.first for attempt in report.attempts[1:] if attempt.first is not None]
    cuts = tuple(attempt.ended for attempt in report.attempts[:-1])
    for name in _drawable(report)[:MOST_CHARTS]:
        points = report.traces[name]
        steps, parts = by_step(points), by_time(points, report.begun, cuts)
        values = [value for point in points if math.isfinite(value := point.value)]
        y = charts.number_axis(values, padded=True)
        made = []
        if steps:
            faint = tuple(thinned(part, MOST_POINTS) for part in _done_again(points))
            made.append(
                charts.LineChart(
                    label=f"{name} over steps: {_told(steps)}", y=y,
                    x=charts.step_axis(max(steps[-1][0], report.steps)),
                    lines=(thinned(steps, MOST_POINTS),), faint=faint, rules=tuple(map(float, starts)),
                )
            )  # fmt: skip
        if parts:
            made.append(
                charts.LineChart(
                    label=f"{name} over wall time: {_told([pair for part in parts for pair in part])}",
                    x=charts.time_axis(report.wall), y=y, unit="s", rules=cuts,
                    lines=tuple(thinned(part, max(4, MOST_POINTS // len(parts))) for part in parts),
                )
            )  # fmt: skip
        yield Metric(
            name=name, count=len(points), first=number_text(values[0]), last=number_text(values[-1]),
            least=number_text(min(values)), greatest=number_text(max(values)), charts=tuple(made),
        )  # fmt: skip


def _done_again(points: Sequence[Point]) -> Iterator[list[tuple[float, float]]]:
    """Of each attempt, the values that a later one wrote anew: drawn below, they show where the two differ."""
    last = {point.step: point.attempt for point in points}
    parts: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        if point.step is not None and last[point.step] > point.attempt and math.isfinite(value := point.value):
            parts.setdefault(point.attempt, []).append((float(point.step), value))
    yield from parts.values()


def _told(pairs: Sequence[tuple[float, float]]) -> str:
    values = [value for _, value in pairs]
    return (
        f"from {number_text(values[0])} to {number_text(values[-1])}, "
        f"between {number_text(min(values))} and {number_text(max(values))}"
    )


def _goodput(report: Report) -> dict[str, Any] | None:
    goodput = report.goodput
    if goodput is None:
        return None
    total = goodput.parts.total or 1.0
    rows = [(name, seconds, seconds / total) for name in PARTS if (seconds := getattr(goodput.parts, name)) > 0]
    attempts = [
        (f"{number}", charts.bar_svg(_pairs(one.parts), _bar_text(f"attempt {number}", one.parts)), one.parts.total)
        for number, one in enumerate(goodput.attempts, 1)
    ]
    longest = max((seconds for _, _, seconds in attempts), default=1.0) or 1.0
    return {
        "bar": charts.bar_svg(_pairs(goodput.parts), _bar_text("the whole job", goodput.parts)),
        "rows": rows,
        "attempts": [
            (name, bar, seconds, round(100 * seconds / longest, 2)) for name, bar, seconds in attempts[:MOST_ROWS]
        ],
        "share": goodput.share,
        "wall": goodput.wall,
    }


def _pairs(parts: Parts) -> list[tuple[str, float]]:
    values = asdict(parts)
    order = ("idle", "start_up", "replayed", "useful", "evaluation", "pause", "ending")
    return [(name, values[name]) for name in order]


def _bar_text(what: str, parts: Parts) -> str:
    told = ", ".join(f"{charts.kind_text(kind)} {seconds_text(value)}" for kind, value in _pairs(parts) if value > 0)
    return f"Time of {what}: {told}"
