"""What the model is given: tensors made of a body, of the type and shape that its example has.

A list is a batch of instances, its first dimension. {"instances": [...]} is the same, and {"inputs": ...} too; where
the model takes several tensors by name, the first has an object per instance, the second an object of batches.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moorage.serving.exchange import RequestError
from moorage.serving.media import CSV, NPY

_CPU = torch.device("cpu")

SHAPES = 'a list of instances, {"instances": [...]} or {"inputs": ...}'


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """shape: None for a dimension of any size, as that of the batch."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{_name(self.dtype)} of shape [{', '.join('*' if dim is None else str(dim) for dim in self.shape)}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            want in (None, dim) for want, dim in zip(self.shape, shape, strict=True)
        )


Spec = TensorSpec | Mapping[str, TensorSpec] | None
"""Of one tensor, of several by name, or not known."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """spec: what a body must be. floats: the type of floating numbers where the spec does not say; None: float32 of a
    text, and as they come in NPY. cast: the model was cast to `floats`, so that what is float32 follows.
    strict: what is no tensor is refused; else it is handed on as it came.
    """

    spec: Spec = None
    floats: torch.dtype | None = None
    cast: bool = False
    device: torch.device = _CPU
    strict: bool = True

    def take(self, value: Any, format: str) -> tuple[Any, bool]:
        """Tensors on the device, and whether the answer is to be an object, as the body was.

        value: as codecs.decode gives it from `format`. Raises RequestError.
        """
        try:
            found, wrapped = _unwrapped(value)
            return self._tensors(found, format), wrapped
        except _NoTensorError as error:
            if self.strict or self.spec is not None:
                raise RequestError(f"the body is no input of this model: {error}") from None
            return value, False

    def _tensors(self, value: Any, format: str) -> Tensor | dict[str, Tensor]:
        spec = self.spec
        if isinstance(spec, TensorSpec):
            return self._tensor(value, spec, format)
        columns = _columns(value)
        if spec is None:
            if columns is None or not self.strict:
                return self._tensor(value, None, format)
            return {name: self._tensor(column, None, format, name) for name, column in columns.items()}
        if columns is None or columns.keys() != spec.keys():
            came = "none by name" if columns is None else _names(columns)
            raise _NoTensorError(f"expected the inputs {_names(spec)}, got {came}")
        return {name: self._tensor(columns[name], part, format, name) for name, part in spec.items()}

    def _tensor(self, value: Any, spec: TensorSpec | None, format: str, name: str = "") -> Tensor:
        label = f"{name}: " if name else ""
        expected = str(spec or "numbers, batch first")
        try:
            array = value if isinstance(value, np.ndarray) else np.array(value)
        except ValueError:
            raise _NoTensorError(f"{label}expected {expected}, got lists of unequal length") from None
        dtype = spec.dtype if spec else self._type(array, format)
        shaped = _shaped(array, spec, format)
        converted = None if shaped is None or dtype is None else _converted(shaped, dtype, typed=format == NPY)
        if converted is None or dtype is None:
            raise _NoTensorError(f"{label}expected {expected}, got {_what(array)}")
        return self._placed(converted, dtype)

    def _type(self, array: NDArray[Any], format: str) -> torch.dtype | None:
        """What an array becomes where nothing says what it should be."""
        if format != NPY:
            return self.floats or torch.float32
        return (self.floats if array.dtype.kind == "f" else None) or getattr(torch, array.dtype.name, None)

    def _placed(self, array: NDArray[Any], dtype: torch.dtype) -> Tensor:
        if not array.flags.writeable and self.device.type == "cpu":
            # No tensor is read-only, and some models write to their input: that must not be the request.
            array = array.copy()
        if self.cast and dtype is torch.float32 and self.floats is not None:
            dtype = self.floats
        return torch.from_numpy(array).to(self.device, dtype)


class _NoTensorError(Exception):
    """What was expected, and what came."""


def _unwrapped(value: Any) -> tuple[Any, bool]:
    if type(value) is not dict:
        return value, False
    for key in ("instances", "inputs"):
        if key in value and len(value) == 1:
            return value[key], True
    raise _NoTensorError(f"expected {SHAPES}, got an object of {_names(value)}")


def _columns(value: Any) -> Mapping[str, Any] | None:
    """A batch by the inputs' names, from an object per instance too."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return None
    if any(not isinstance(row, dict) or row.keys() != value[0].keys() for row in value):
        raise _NoTensorError("expected instances with the same names in each")
    return {name: [row[name] for row in value] for name in value[0]}


def _shaped(array: NDArray[Any], spec: TensorSpec | None, format: str) -> NDArray[Any] | None:
    """`array` if it fits; a row of CSV is flat, whatever an instance's shape is."""
    if spec is None:
        return array if array.size and array.ndim else None
    if spec.fits(array.shape):
        return array
    instance = spec.shape[1:]
    if format != CSV or None in instance or math.prod(dim or 0 for dim in instance) != array.shape[-1]:
        return None
    shape = (len(array), *(dim or 0 for dim in instance))
    return array.reshape(shape) if spec.fits(shape) else None


def _converted(array: NDArray[Any], dtype: torch.dtype, *, typed: bool) -> NDArray[Any] | None:
    """`array` in numpy's type for `dtype`, or None where that would change what it says.

    typed: the client chose the type, so that only the width may change; numbers in a text are what they can be.
    """
    kind = array.dtype.kind
    if dtype.is_floating_point:
        if kind not in ("f" if typed else "fiu"):
            return None
        with np.errstate(over="ignore"):
            floats = array.astype(_NUMPY.get(dtype, np.float32), copy=False)
        if not typed and np.isinf(floats).any():
            raise _NoTensorError(f"a number is too large for {_name(dtype)}")
        return floats
    if dtype is torch.bool or dtype.is_complex:
        return array.astype(_NUMPY[dtype], copy=False) if kind == ("b" if dtype is torch.bool else "c") else None
    if kind == "f" and not typed and np.array_equal(array, np.trunc(array)) and (np.abs(array) < 2**53).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        return None
    target = np.dtype(_NUMPY[dtype])
    if array.size and not np.can_cast(array.dtype, target):
        limits = np.iinfo(target)
        if array.min() < limits.min or array.max() > limits.max:
            raise _NoTensorError(f"a number is too large for {_name(dtype)}")
    return array.astype(target, copy=False)


_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float64: np.float64, torch.float32: np.float32, torch.float16: np.float16, torch.bool: np.bool_,
    torch.complex64: np.complex64, torch.complex128: np.complex128, torch.int64: np.int64, torch.int32: np.int32,
    torch.int16: np.int16, torch.int8: np.int8, torch.uint64: np.uint64, torch.uint32: np.uint32,
    torch.uint16: np.uint16, torch.uint8: np.uint8,
}  # fmt: skip
"""The others, such as bfloat16, go by way of float32."""


def _what(array: NDArray[Any]) -> str:
    words = {"U": "text", "S": "text", "O": "null, text or objects", "b": "true and false"}
    return f"{words.get(array.dtype.kind, array.dtype.name)} of shape {list(array.shape)}"


def _names(names: Collection[str]) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") or "nothing"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
