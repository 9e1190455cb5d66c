"""The metric line, its definitions, and the best report."""

from __future__ import annotations

import math
import re

import pytest
import torch

from moorage.contract.metrics import metric_definitions, metric_line
from moorage.contract.settings import Settings
from moorage.errors import ConfigError
from moorage.training.best import Best
from moorage.training.metrics import StepMetrics, scalar


def test_the_line_is_as_designed() -> None:
    line = metric_line(120, 3, {"train_loss": 0.2310004, "val_accuracy": 0.914})
    assert line == "#metric step=120 epoch=3 train_loss=0.231 val_accuracy=0.914\n"


@pytest.mark.parametrize("value", [0.0, -1.5, 1e-9, 3e20, 123456.0, math.inf, -math.inf, math.nan])
def test_definitions_read_every_number_back(value: float) -> None:
    line = metric_line(1, 0, {"val/loss": 7.0, "loss": value, "loss_2": 8.0})
    definition = next(d for d in metric_definitions(["loss", "loss_2"]) if d["Name"] == "loss")
    found = re.search(definition["Regex"], line)
    assert found
    assert float(found[1]) == pytest.approx(value, rel=1e-5, nan_ok=True)


def test_definitions_keep_the_service_limits() -> None:
    for definition in metric_definitions(["val/accuracy", "a" * 100]):
        assert len(definition["Regex"]) <= 500
        assert re.fullmatch(r".+", definition["Name"])


def test_step_metrics_are_means_since_the_last_line() -> None:
    metrics = StepMetrics()
    metrics.add({"loss": torch.tensor(1.0), "rate": 2})
    metrics.add({"loss": torch.tensor(3.0, requires_grad=True), "rate": 4})
    assert metrics.take() == {"train_loss": 2.0, "train_rate": 3.0}
    assert metrics.take() == {}


@pytest.mark.parametrize(("name", "value"), [("a b", 1.0), ("loss", torch.zeros(2)), ("loss", "high"), ("", 1)])
def test_what_is_no_metric_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(name))):
        scalar(name, value)


def best(**settings: object) -> Best:
    return Best.of(Settings.read({}, {}, settings))


def test_the_best_report_by_direction() -> None:
    high, low = best(best="max:acc"), best(best="min:loss")
    assert [high.update(s, {"acc": v}) for s, v in enumerate([0.1, 0.3, 0.2])] == [True, True, False]
    assert [low.update(s, {"loss": v}) for s, v in enumerate([0.1, 0.3, 0.05])] == [True, False, True]
    assert (high.step, low.step) == (1, 2)
    assert not high.update(9, {"acc": math.nan})
    assert not high.update(9, {"other": 1.0})


def test_patience_counts_a_repeated_report_once() -> None:
    watch = best(best="max:acc", patience=2)
    watch.update(10, {"acc": 0.5})
    for _attempt in range(3):
        watch.update(20, {"acc": 0.4})
    assert not watch.exhausted
    restored = best(best="max:acc", patience=2)
    restored.restore(watch.state())
    restored.update(30, {"acc": 0.4})
    assert restored.exhausted
    assert restored.step == 10


@pytest.mark.parametrize("text", ["val_accuracy", "highest:acc", "max:", "max:a b"])
def test_a_best_without_direction_or_metric_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="max:val_accuracy"):
        best(best=text)


def test_patience_without_a_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="moorage_best"):
        best(patience=3)
