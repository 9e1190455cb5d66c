"""NumPy's NPY format: a header, and numbers that are taken from a body, and put into one, as they lie there.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html; pickled objects are refused.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Array = NDArray[np.generic]

_PREFIX = 8
"""Bytes of magic and version, before the header's length."""


class NotNpy(ValueError):
    """What is wrong with a body."""


def decode(body: memoryview) -> Array:
    """The array of a body, as a read-only view of it. Raises NotNpy."""
    start = _start(body)
    shape, fortran, dtype = _header(bytes(body[:start]))
    count = math.prod(shape)
    size, there = count * dtype.itemsize, len(body) - start
    if size != there:
        raise NotNpy(f"{dtype} of shape {list(shape)} are {size} bytes, and {there} follow the header")
    if not count:
        return np.empty(shape, dtype)
    array = np.frombuffer(body, dtype, count, start)
    return array.reshape(shape, order="F" if fortran else "C")


def encode(array: Array) -> bytes:
    """Raises TypeError for an array of objects."""
    if array.dtype.hasobject:
        raise TypeError(f"an array of {array.dtype}")
    array = np.ascontiguousarray(array).reshape(array.shape)  # the first makes one dimension of none
    return b"".join((_head(array.dtype.str, array.shape), array.reshape(-1).view(np.uint8).data))


def _start(body: memoryview) -> int:
    """Where the numbers begin."""
    if bytes(body[:6]) != b"\x93NUMPY" or len(body) < _PREFIX + 2:
        raise NotNpy("it does not begin as an NPY file does")
    width = {1: 2, 2: 4, 3: 4}.get(body[6], 0)
    if not width or len(body) < _PREFIX + width:
        raise NotNpy(f"NPY of version {body[6]}.{body[7]} is not known")
    start = _PREFIX + width + int.from_bytes(body[_PREFIX : _PREFIX + width], "little")
    if start > min(len(body), 2**16):
        raise NotNpy("its header is not whole")
    return start


@lru_cache(maxsize=256)
def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, order and type. A client sends one header again and again, and to read it takes as long as all else."""
    read = npy.read_array_header_1_0 if head[6] == 1 else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read(io.BytesIO(head[_PREFIX:]))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise NotNpy(f"its header cannot be read: {_first_line(error)}") from None
    if dtype.hasobject:
        raise NotNpy(f"it holds Python objects ({dtype}), which are pickled: send numbers")
    if dtype.kind not in "biufc":
        raise NotNpy(f"it holds {dtype}, which are no numbers")
    if any(dim < 0 for dim in shape):
        raise NotNpy(f"its shape is {list(shape)}")
    return shape, fortran, dtype


@lru_cache(maxsize=256)
def _head(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
