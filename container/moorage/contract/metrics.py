"""The metric line, and the MetricDefinitions by which SageMaker reads it.

`#metric step=120 epoch=3 train_loss=0.231 val_accuracy=0.914`: one line, from global rank 0, newline-terminated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

METRIC_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-/]*")


def metric_line(step: int, epoch: int, values: Mapping[str, float]) -> str:
    """The line that `moorage metrics` has the definitions for, newline included."""
    parts = [f"{name}={value:.6g}" for name, value in values.items()]
    return " ".join(["#metric", f"step={step}", f"epoch={epoch}", *parts]) + "\n"


def metric_definitions(names: Iterable[str]) -> list[dict[str, str]]:
    """SageMaker's MetricDefinitions for the metric line: at most 40, a regex of at most 500 characters each
    (CreateTrainingJob, AlgorithmSpecification)."""
    number = r"([-+]?(?:[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?|inf|nan))"
    return [{"Name": name, "Regex": rf"#metric .* {re.escape(name)}={number}"} for name in sorted(set(names))]
