"""A study as one HTML page: parallel coordinates, rungs, curves, and how to run its best trial again. No script."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from moorage import __version__
from moorage.cloud.results import Results, Trial
from moorage.cloud.space import Categorical, Range, is_logarithmic
from moorage.cloud.tuning import rungs
from moorage.rehearsal import report_charts as charts
from moorage.rehearsal.report_page import stylesheet, template
from moorage.rehearsal.report_text import counted, number_text

PAGE = "study.html"
_KINDS = (
    ("best", "the best"), ("Completed", "to its end"), ("Stopped", "stopped early"), ("InProgress", "at work"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One axis. left: percent of the width. places: (percent from below, text)."""

    name: str
    left: float
    places: tuple[tuple[float, str], ...]


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """lines: of each trial that has a value, its kind, its title, and its height on each axis, 0 to 1."""

    axes: tuple[Coordinate, ...]
    lines: tuple[tuple[str, str, tuple[float, ...]], ...]

    def svg(self) -> Markup:
        made = []
        for kind, title, heights in self.lines:
            places = [
                (round(charts.SCALE * axis.left / 100), round(charts.SCALE * (1 - height)))
                for axis, height in zip(self.axes, heights, strict=True)
            ]
            points = " ".join(f"{x},{y}" for x, y in places)
            made.append(f'<polyline class="trial-{kind}" points="{points}"><title>{escape(title)}</title></polyline>')
        number = counted(len(self.lines), "trial")
        label = f"{number}, by hyperparameters and objective; the table below has all numbers"
        return Markup(
            f'<svg viewBox="0 0 {charts.SCALE} {charts.SCALE}" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(label)}">{"".join(made)}</svg>'
        )


def page(found: Results, program: str | None) -> str:
    """program: of the commands."""
    best = found.best
    valued = [trial for trial in found.trials if trial.best is not None and not trial.failed]
    order = sorted(valued, key=lambda one: one.best or 0.0, reverse=found.tuning.objective.maximize)
    ranked = [*order, *(trial for trial in found.trials if trial not in valued)]
    hidden = len(found.trials) - len(valued)
    return template("study.html").render(
        study=found, best=best, style=stylesheet(), version=__version__, kinds=_KINDS, ranked=ranked,
        commands=list(commands(found, program)), names=[one.name for one in found.tuning.ranges],
        chart=_parallel(found, valued), rungs=list(_rungs(found)), curves=_curves(found, valued),
        hidden=f"{counted(hidden, 'trial')} without a value of the objective not shown." if hidden else "",
    )  # fmt: skip


def write_page(found: Results, program: str | None) -> None:
    """Into the study's folder. Raises OSError."""
    (found.folder / PAGE).write_text(page(found, program), encoding="utf-8")


def commands(found: Results, program: str | None) -> Iterator[str]:
    """That rehearse, and submit, the best trial's job."""
    if found.best is None:
        return
    values = {**found.static, **found.best.hyperparameters}
    given = " ".join(f"-p {shlex.quote(f'{name}={value}')}" for name, value in values.items())
    for command in ("run", "submit"):
        yield " ".join(filter(None, ("moorage", command, program and shlex.quote(program), given)))


def _parallel(found: Results, valued: Sequence[Trial]) -> Parallel | None:
    if not valued:
        return None
    ranges, best = found.tuning.ranges, found.best
    results = charts.number_axis([trial.best or 0.0 for trial in valued])
    step = 100 / len(ranges)
    axes = [
        Coordinate(name=one.name, left=round(step * number, 2), places=_places(one))
        for number, one in enumerate(ranges)
    ]
    axes.append(Coordinate(name=found.tuning.objective.metric, left=100.0, places=results.places))
    order = sorted(valued, key=lambda trial: (trial is best, trial.status == "Completed"))
    lines = tuple(
        (
            "best" if trial is best else trial.status,
            f"trial {trial.number}: {number_text(trial.best or 0.0)}",
            (
                *(_height(one, trial.hyperparameters) for one in ranges),
                results.at(trial.best or 0.0) / charts.SCALE,
            ),
        )
        for trial in order
    )
    return Parallel(axes=tuple(axes), lines=lines)


def _places(one: Range) -> tuple[tuple[float, str], ...]:
    if isinstance(one, Categorical):
        last = max(1, len(one.values) - 1)
        return tuple((round(100 * number / last, 2), value) for number, value in enumerate(one.values))
    return (0.0, number_text(one.low)), (100.0, number_text(one.high))


def _height(one: Range, values: Mapping[str, str]) -> float:
    text = values.get(one.name, "")
    if isinstance(one, Categorical):
        return one.values.index(text) / max(1, len(one.values) - 1) if text in one.values else 0.0
    low, high, value = float(one.low), float(one.high), float(text)
    if is_logarithmic(one):
        low, high, value = math.log(low), math.log(high), math.log(value)
    elif one.scaling == "ReverseLogarithmic":
        low, high, value = -math.log1p(-low), -math.log1p(-high), -math.log1p(-value)
    return (value - low) / ((high - low) or 1.0)


@dataclass(frozen=True, kw_only=True)
class Rung:
    reports: int
    came: int
    stopped: int
    went_on: int
    best: float | None


def _rungs(found: Results) -> Iterator[Rung]:
    tuning = found.tuning
    if tuning.strategy != "hyperband" or tuning.max_resource is None:
        return
    least = tuning.min_resource or 1
    stops = [*rungs(least, tuning.max_resource), tuning.max_resource]
    for reports in stops:
        came = [trial for trial in found.trials if len(trial.values) >= reports]
        stopped = [trial for trial in came if trial.status == "Stopped" and len(trial.values) < _next(stops, reports)]
        values = [trial.values[reports - 1] for trial in came if math.isfinite(trial.values[reports - 1])]
        choose = max if tuning.objective.maximize else min
        yield Rung(
            reports=reports, came=len(came), stopped=len(stopped), went_on=len(came) - len(stopped),
            best=choose(values, default=None),
        )  # fmt: skip


def _next(stops: Sequence[int], reports: int) -> float:
    return next((one for one in stops if one > reports), math.inf)


def _curves(found: Results, valued: Sequence[Trial]) -> charts.LineChart | None:
    def line(trial: Trial) -> list[tuple[float, float]]:
        return [(float(number), value) for number, value in enumerate(trial.values, 1) if math.isfinite(value)]

    best = found.best
    lines = [line(trial) for trial in valued if trial is not best]
    first = [line(best)] if best is not None else []
    pairs = [pair for one in (*lines, *first) for pair in one]
    if not pairs or max(x for x, _ in pairs) < 2:
        return None
    return charts.LineChart(
        label=f"{found.tuning.objective.metric} of each trial, by report", unit="report",
        x=charts.step_axis(max(x for x, _ in pairs)), y=charts.number_axis([y for _, y in pairs], padded=True),
        lines=tuple(first), faint=tuple(lines),
    )  # fmt: skip
