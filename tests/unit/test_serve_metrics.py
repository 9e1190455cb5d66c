"""What Prometheus and CloudWatch read of `serve`: counts are exact, times within a bucket, formats as specified."""

from __future__ import annotations

import json
import re
from typing import Any

from moorage.serving.histogram import ROUND_SECONDS, SECONDS, Histogram
from moorage.serving.metrics import Gauge, Metrics

SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[a-z]+="[^"\\\n]*"\})?) (\S+)')


def samples(text: str) -> dict[str, float]:
    """Of Prometheus' text format, checked as it is read: every sample under the TYPE of its family."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    family = kind = ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            name = match[1].partition("{")[0]
            assert name == family or (kind == "histogram" and re.sub("_(bucket|sum|count)$", "", name) == family)
            found[match[1]] = float(match[2])
    return found


def emf(metrics: Metrics) -> dict[str, Any]:
    """A document of CloudWatch's format, checked as the specification says."""
    line = metrics.emf()
    assert "\n" not in line
    document: dict[str, Any] = json.loads(line)
    (directive,) = document["_aws"]["CloudWatchMetrics"]
    assert isinstance(document["_aws"]["Timestamp"], int) and directive["Namespace"]
    (dimensions,) = directive["Dimensions"]
    assert all(isinstance(document[name], str) for name in dimensions)
    for metric in directive["Metrics"]:
        assert metric["Unit"] in ("Count", "Milliseconds", "None")
        value = document[metric["Name"]]
        values = value if isinstance(value, list) else [value]
        assert 0 < len(values) <= 100 and all(isinstance(one, (int, float)) for one in values)
    assert set(document) == {"_aws", *dimensions, *(metric["Name"] for metric in directive["Metrics"])}
    return document


def test_every_request_is_counted() -> None:
    depth = 3
    metrics = Metrics(Gauge(name="queue_depth", doc="Requests that wait.", read=lambda: depth))
    for _ in range(8):
        metrics.answered(200, 0.004, 4, 0.001)
    metrics.answered(422, 0.3, 1, 0.2)
    metrics.answered(503, 0.0)
    metrics.rejected("queue_full")
    metrics.respawned()
    found = samples(metrics.prometheus())
    assert found['moorage_requests_total{status="200"}'] == 8
    assert found['moorage_requests_total{status="503"}'] == found['moorage_rejected_total{reason="queue_full"}'] == 1
    assert found["moorage_batches_total"] == 3
    assert found["moorage_respawns_total"] == 1
    assert found["moorage_queue_depth"] == 3
    assert found["moorage_request_seconds_count"] == 9, "what no model saw says nothing of the model"
    assert abs(found["moorage_request_seconds_sum"] - 0.332) < 1e-9
    assert found['moorage_request_seconds_bucket{le="0.0025"}'] == 0
    assert found['moorage_request_seconds_bucket{le="0.005"}'] == 8
    assert found['moorage_request_seconds_bucket{le="+Inf"}'] == 9
    assert found['moorage_request_batch_size_bucket{le="2"}'] == 1
    depth = 7
    assert samples(metrics.prometheus())["moorage_queue_depth"] == 7


def test_a_server_that_nobody_asked_has_metrics_too() -> None:
    assert samples(Metrics().prometheus())["moorage_request_seconds_count"] == 0
    document = emf(Metrics())
    assert document["Requests"] == 0 and "Latency" not in document


def test_a_line_for_cloudwatch_is_of_what_came_since_the_last() -> None:
    metrics = Metrics(dimensions={"Endpoint": "digits"}, clock=lambda: 1_700_000_000.5)
    for n in range(1, 1001):
        metrics.answered(200, n / 1000, 2, 0.0)
    metrics.answered(503, 0.0)
    metrics.rejected("queue_full")
    first = emf(metrics)
    assert first["_aws"]["Timestamp"] == 1_700_000_000_500
    assert (first["Endpoint"], first["Requests"], first["ServerErrors"], first["Rejected"]) == ("digits", 1001, 1, 1)
    assert first["Batches"] == 500
    latency = first["Latency"]
    assert len(latency) == 100 and latency == sorted(latency)
    for share in (10, 50, 90, 99):
        assert share * 10 <= latency[share] <= 1.13 * (share + 1) * 10
    assert first["BatchSize"] == [2] * 100
    metrics.answered(400, 0.2, 1, 0.0)
    second = emf(metrics)
    assert (second["Requests"], second["ClientErrors"], second["ServerErrors"], second["Latency"]) == (1, 1, 0, [200])


def test_a_bucket_is_found_by_its_bound() -> None:
    assert len(set(SECONDS)) == len(SECONDS) and list(SECONDS) == sorted(SECONDS)
    assert set(ROUND_SECONDS) <= set(SECONDS)
    assert {0.001, 0.0025, 0.005, 0.1, 1, 60} <= {*SECONDS, 60} and {0.001, 0.0025, 0.1, 1} <= set(ROUND_SECONDS)
    histogram = Histogram([1, 2, 4])
    for value in (0, 1, 1.5, 2, 4, 99):
        histogram.add(value)
    assert histogram.counts == [2, 2, 1, 1]
    assert list(histogram.up_to([1, 4])) == [(1, 2), (4, 5)]
    assert histogram.spread(histogram.counts, 100) == [1, 1, 2, 2, 4, 4]
    assert histogram.spread(histogram.counts, 2) == [1, 4]
    assert histogram.spread(histogram.since(histogram.counts), 100) == []
