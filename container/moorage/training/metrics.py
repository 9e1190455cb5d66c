"""Metrics of a Run: what may be one, and their means between two metric lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moorage.contract.metrics import METRIC_NAME
from moorage.errors import ConfigError


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
