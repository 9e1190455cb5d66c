"""Predictions as plain values: tensors and arrays of any kind become lists of numbers, or one array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

NOT_OF_NUMPY = frozenset({torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2})
"""Numbers that numpy has no type for, and float32 holds exactly."""


def is_tensor(value: Any) -> bool:
    """Whether it is one of torch's or numpy's."""
    return isinstance(value, torch.Tensor | np.ndarray)


def plain(value: Any) -> Any:
    """What the json module can write of `value`, one level of it. Raises TypeError."""
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.dim() < 2 else as_numpy(value).tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    if isinstance(value, bool | int | float | str | list) or value is None:
        return value
    raise TypeError(f"it holds a {type(value).__name__}")


def as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """On the CPU, without a copy where it is there."""
    tensor = tensor.detach()
    if tensor.dtype in NOT_OF_NUMPY:
        tensor = tensor.float()
    return tensor.cpu().resolve_conj().resolve_neg().numpy()


def to_array(value: Any) -> NDArray[Any]:
    """`value` as one array of numbers. Raises TypeError or ValueError where it is none."""
    array = as_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"it is a {type(value).__name__}")
    return array
