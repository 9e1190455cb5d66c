"""What the front counts and times, as Prometheus and CloudWatch read it.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats, text 0.0.4, and
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from moorage.serving.histogram import ROUND_SECONDS, SECONDS, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

NAMESPACE = "Moorage/Serving"

_SIZES = (*range(1, 17), *(16 * n for n in range(2, 17)), *(256 * n for n in range(2, 17)))
_ROUND_SIZES = tuple(2**n for n in range(11))
_MOST_VALUES = 100
"""Of one metric in one line of CloudWatch's format."""


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """What is read when somebody asks."""

    name: str
    doc: str
    read: Callable[[], float]


class Metrics:
    """Used in one thread. dimensions: of all metrics in CloudWatch, which knows only these apart.

    `answered` is called once for each request, whoever answered it; `rejected` says why besides.
    """

    def __init__(
        self, *gauges: Gauge, dimensions: Mapping[str, str] | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._gauges, self._dimensions, self._clock = gauges, dict(dimensions or {}), clock
        self._statuses: Counter[int] = Counter()
        self._reasons: Counter[str] = Counter()
        self._respawns = 0
        self._batches = 0.0
        self._seconds, self._queued, self._sizes = Histogram(SECONDS), Histogram(SECONDS), Histogram(_SIZES)
        self._told = self._totals()
        self._shown = [list(histogram.counts) for histogram in self._histograms]

    @property
    def _histograms(self) -> tuple[Histogram, Histogram, Histogram]:
        return self._seconds, self._queued, self._sizes

    def answered(self, status: int, seconds: float, batch_size: int = 0, queue_seconds: float = 0.0) -> None:
        """batch_size: of the batch that the request was in; 0 where no model saw it: its times are then left out."""
        self._statuses[status] += 1
        if batch_size:
            self._batches += 1 / batch_size
            # Histogram.add without its calls: this runs for each request.
            for histogram, value in (
                (self._seconds, seconds),
                (self._queued, queue_seconds),
                (self._sizes, batch_size),
            ):
                histogram.counts[bisect_left(histogram.bounds, value)] += 1
                histogram.sum += value

    def rejected(self, reason: str) -> None:
        """reason: one of few, such as queue_full."""
        self._reasons[reason] += 1

    def respawned(self) -> None:
        """A model process was replaced."""
        self._respawns += 1

    def prometheus(self) -> str:
        """Everything since the start."""
        lines: list[str] = []

        def add(name: str, kind: str, doc: str, samples: Mapping[str, float]) -> None:
            name = f"moorage_{name}"
            lines.extend((f"# HELP {name} {doc}", f"# TYPE {name} {kind}"))
            lines.extend(f"{name}{labels} {_number(value)}" for labels, value in samples.items())

        add(
            "requests_total",
            "counter",
            "Requests to /invocations, by the status of their answer.",
            {f'{{status="{status}"}}': count for status, count in sorted(self._statuses.items())},
        )
        add(
            "rejected_total",
            "counter",
            "Requests that no model saw, by the reason.",
            {f'{{reason="{reason}"}}': count for reason, count in sorted(self._reasons.items())},
        )
        add("batches_total", "counter", "Batches that models were given.", {"": round(self._batches, 3)})
        add("respawns_total", "counter", "Model processes that were replaced.", {"": self._respawns})
        for gauge in self._gauges:
            add(gauge.name, "gauge", gauge.doc, {"": gauge.read()})
        for name, doc, histogram, bounds in (
            ("request_seconds", "From a request to its answer, where a model saw it.", self._seconds, ROUND_SECONDS),
            ("queue_seconds", "Of these, until a model process was given it.", self._queued, ROUND_SECONDS),
            ("request_batch_size", "Size of the batch that a request was in.", self._sizes, _ROUND_SIZES),
        ):
            add(name, "histogram", doc, dict(_of_histogram(histogram, bounds)))
        return "\n".join(lines) + "\n"  # fmt: skip

    def emf(self) -> str:
        """One line: what was counted since the last one, and at most a hundred times and sizes, spread as all were."""
        totals = self._totals()
        values: dict[str, tuple[str, float | list[float]]] = {
            name: ("Count", round(value - self._told[name], 3)) for name, value in totals.items()
        }
        for gauge in self._gauges:
            values["".join(map(str.capitalize, gauge.name.split("_")))] = ("None", gauge.read())
        for name, unit, factor, histogram, shown in zip(
            ("Latency", "QueueTime", "BatchSize"), ("Milliseconds", "Milliseconds", "Count"), (1000, 1000, 1),
            self._histograms, self._shown, strict=True
        ):  # fmt: skip
            spread = histogram.spread(histogram.since(shown), _MOST_VALUES)
            if spread:
                values[name] = unit, [round(value * factor, 6) for value in spread]
        self._told, self._shown = totals, [list(histogram.counts) for histogram in self._histograms]
        directive = {
            "Namespace": NAMESPACE,
            "Dimensions": [list(self._dimensions)],
            "Metrics": [{"Name": name, "Unit": unit} for name, (unit, _) in values.items()],
        }
        document = {"_aws": {"Timestamp": int(self._clock() * 1000), "CloudWatchMetrics": [directive]}}
        flat = {name: value for name, (_, value) in values.items()}
        return json.dumps({**document, **self._dimensions, **flat}, separators=(",", ":"))

    def _totals(self) -> dict[str, float]:
        return {
            "Requests": sum(self._statuses.values()),
            "ClientErrors": sum(count for status, count in self._statuses.items() if 400 <= status < 500),
            "ServerErrors": sum(count for status, count in self._statuses.items() if status >= 500),
            "Rejected": sum(self._reasons.values()),
            "Batches": self._batches,
            "Respawns": self._respawns,
        }


def _of_histogram(histogram: Histogram, bounds: tuple[float, ...]) -> Iterator[tuple[str, float]]:
    for bound, count in histogram.up_to(bounds):
        yield f'_bucket{{le="{_number(bound)}"}}', count
    yield '_bucket{le="+Inf"}', histogram.count
    yield "_sum", histogram.sum
    yield "_count", histogram.count


def _number(value: float) -> str:
    return f"{value:.12g}"
