"""The metric line, and the MetricDefinitions by which SageMaker reads it.

`#metric step=120 epoch=3 train_loss=0.231 val_accuracy=0.914`: one line, from global rank 0, newline-terminated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from moorage.errors import ProgramError

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


def metric_names(program: Path) -> set[str]:
    """The metrics `program` logs: keywords of `.step(...)`, as train_<name>, and of `.report(...)`.

    Raises ProgramError when the file cannot be read or parsed.
    """
    try:
        tree = ast.parse(program.read_text(encoding="utf-8"), str(program))
    except OSError as error:
        raise ProgramError(f"cannot read {program}", why=str(error.strerror), fix="name the program's file") from None
    except (SyntaxError, ValueError) as error:
        raise ProgramError(f"{program} is not Python", why=str(error)) from None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            prefix = {"step": "train_", "report": ""}.get(node.func.attr)
            if prefix is not None:
                names.update(prefix + keyword.arg for keyword in node.keywords if keyword.arg)
    return names
