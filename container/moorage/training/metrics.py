"""The metric line, and what SageMaker needs to read it.

`#metric step=120 epoch=3 train_loss=0.231 val_accuracy=0.914`: one line, from global rank 0, newline-terminated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from moorage.errors import ConfigError

METRIC_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-/]*")


def metric_line(step: int, epoch: int, values: Mapping[str, float]) -> str:
    """The line that `moorage metrics` has the definitions for, newline included."""
    parts = [f"{name}={value:.6g}" for name, value in values.items()]
    return " ".join(["#metric", f"step={step}", f"epoch={epoch}", *parts]) + "\n"


def scalar(name: str, value: Any) -> float:
    """A metric as a float. Raises ConfigError for what is not one number, or a name the line cannot hold."""
    if not METRIC_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a metric name", fix="use letters, digits, '_', '.', '-' and '/'")
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.numel() != 1:
            raise ConfigError(f"metric {name!r} has shape {tuple(value.shape)}", fix="reduce it to one number first")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"metric {name!r} is a {type(value).__name__}", fix="give one number") from None


class StepMetrics:
    """Metrics given to `run.step`, kept on their device until a line is due: reading one waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor | float] = {}
        self._num: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        for name, given in metrics.items():
            value = given.detach() if isinstance(given, torch.Tensor) else scalar(name, given)
            if name in self._sums:
                self._sums[name] = self._sums[name] + value
            else:
                self._sums[name] = value.float().clone() if isinstance(value, torch.Tensor) else value
            self._num[name] = self._num.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Means since the last call, as `train_<name>`."""
        means = {f"train_{name}": scalar(name, total) / self._num[name] for name, total in self._sums.items()}
        self._sums, self._num = {}, {}
        return means


def metric_definitions(names: Iterable[str]) -> list[dict[str, str]]:
    """SageMaker's MetricDefinitions for the metric line: at most 40, a regex of at most 500 characters each
    (CreateTrainingJob, AlgorithmSpecification)."""
    number = r"([-+]?(?:[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?|inf|nan))"
    return [
        {"Name": name, "Regex": rf"#metric .* {re.escape(name)}={number}"}
        for name in sorted(set(names))
    ]
