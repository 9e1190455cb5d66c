"""The comparison as one HTML page, made as a report is: nothing fetched, no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moorage import __version__
from moorage.rehearsal import report_charts as charts
from moorage.rehearsal.compare import Comparison, Metric
from moorage.rehearsal.report_page import MOST_CHARTS, MOST_POINTS, stylesheet, template
from moorage.rehearsal.traces import thinned


def page(comparison: Comparison) -> str:
    metrics = comparison.metrics
    return template("compare.html").render(
        comparison=comparison,
        style=stylesheet(),
        version=__version__,
        metrics=[_drawn(metric) for metric in metrics[:MOST_CHARTS]],
        others=max(0, len(metrics) - MOST_CHARTS),
    )


def write_page(comparison: Comparison, path: Path) -> None:
    """Raises OSError."""
    path.write_text(page(comparison), encoding="utf-8")


def _drawn(metric: Metric) -> dict[str, Any]:
    pairs = [pair for line in metric.lines for pair in line]
    chart = charts.LineChart(
        label=f"{metric.name} of each job, by step; the table below has its numbers",
        x=charts.step_axis(max(step for step, _ in pairs)),
        y=charts.number_axis([value for _, value in pairs], padded=True),
        lines=tuple(thinned(line, MOST_POINTS) for line in metric.lines),
        many=True,
    )
    cells = {
        "last": metric.cells(lambda values: values[-1]), "least": metric.cells(min), "greatest": metric.cells(max)
    }  # fmt: skip
    return {"name": metric.name, "chart": chart, "cells": cells}
