"""Several requests as one input of the model, and its prediction taken apart again: along the first dimension."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from moorage.serving.plain import is_tensor


def likeness(data: Any) -> Hashable:
    """Equal for inputs that can be joined; None for one that cannot be joined with any."""
    if is_tensor(data):
        return (type(data).__name__, str(data.dtype), tuple(data.shape[1:])) if data.ndim else None
    if isinstance(data, dict) and data:
        parts = tuple((name, likeness(part)) for name, part in data.items())
        sizes = {len(part) for part in data.values() if is_tensor(part) and part.ndim}
        return parts if len(sizes) == 1 and all(part for _, part in parts) else None
    return None


def size_of(data: Any) -> int:
    """Instances in an input that has a likeness."""
    return len(next(iter(data.values())) if isinstance(data, dict) else data)


def join(inputs: Sequence[Any]) -> Any:
    """Inputs of one likeness, in one."""
    first = inputs[0]
    if isinstance(first, dict):
        return {name: join([each[name] for each in inputs]) for name in first}
    return torch.cat(list(inputs)) if isinstance(first, torch.Tensor) else np.concatenate(inputs)


def split(prediction: Any, sizes: Sequence[int]) -> list[Any] | None:
    """The prediction of each input; None where it cannot be said which part is whose."""
    total = sum(sizes)
    ends = np.cumsum(sizes).tolist()
    if is_tensor(prediction):
        if not prediction.ndim or len(prediction) != total:
            return None
        return [prediction[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    if isinstance(prediction, list) and len(prediction) == total:
        return [prediction[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    if isinstance(prediction, Mapping) and prediction:
        parts = {name: split(part, sizes) for name, part in prediction.items()}
        if any(part is None for part in parts.values()):
            return None
        return [{name: part[at] for name, part in parts.items() if part} for at in range(len(sizes))]
    if isinstance(prediction, tuple) and prediction:
        columns = [split(part, sizes) for part in prediction]
        if any(column is None for column in columns):
            return None
        return [tuple(column[at] for column in columns if column) for at in range(len(sizes))]
    return None
