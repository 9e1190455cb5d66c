"""Where the values of a tensor lie in what torch.save wrote, without copying or executing any of it.

torch.save writes a zip file of uncompressed entries: `data.pkl`, a pickle that describes the tensor, and `data/0`, its
storage as it is in memory. The entries are found by the directory at the end (APPNOTE.TXT 6.3.10, 4.3.12 to 4.3.16);
the pickle is read with stand-ins for the few globals that a plain tensor needs.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch.storage import _dtype_to_storage_type_map

from moorage.checkpoint.source import File

_TAIL = 1024
"""Bytes at the end of an item in which the directory fits: torch writes seven entries of about 65 bytes."""
_HEAD = 1024
"""Bytes at its start in which the pickle fits, and the header of the storage."""

_END = struct.Struct("<4s4x4xIIH")
_END64 = struct.Struct("<4s36xQQ")
_ENTRY = struct.Struct("<4s6xH8xIIHHH8xI")
_LOCAL = struct.Struct("<4s22xHH")
_MAX = 0xFFFFFFFF

_DTYPES = {name: dtype for dtype, name in _dtype_to_storage_type_map().items()} | {
    name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)
}


@dataclass(frozen=True, kw_only=True)
class Item:
    """A tensor in a file. offset, size: of its storage, in bytes. strides and first: in elements."""

    offset: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True

    def fits(self) -> bool:
        """Whether all of its elements are inside its storage."""
        if not len(self.shape) == len(self.strides) <= 64 or self.first < 0 or 0 in self.shape:
            return not self.first and not self.size
        if any(length < 0 or stride < 0 for length, stride in zip(self.shape, self.strides, strict=True)):
            return False
        last = self.first + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize <= self.size


class _NotOurs(Exception):
    """Of another form than torch.save gives to a plain tensor."""


def find_item(file: File, offset: int, length: int) -> Item | None:
    """The tensor in these bytes of a file; None for what has another form, which torch.load knows how to refuse.

    Raises OSError.
    """
    head, tail = bytearray(min(length, _HEAD)), bytearray(min(length, _TAIL))
    file.read_into(memoryview(head), offset)
    file.read_into(memoryview(tail), offset + length - len(tail))
    try:
        entries = _directory(bytes(tail), length)
        pickled = _entry(entries["data.pkl"], head)
        if (
            entries["byteorder"][1] != len(sys.byteorder)
            or _entry(entries["byteorder"], head) != sys.byteorder.encode()
        ):
            return None
        at, size = entries["data/0"]
        start = _start(at, head)
        item = _described(pickled, offset + start, size)
    except (_NotOurs, struct.error, pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError,
            EOFError, OverflowError, MemoryError):  # fmt: skip
        return None
    return item if start + size <= length and item.fits() else None


def _directory(tail: bytes, length: int) -> dict[str, tuple[int, int]]:
    """By name: where in the item an entry begins, and its bytes."""
    signature, size, start, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\5\6" or comment:
        raise _NotOurs
    if _MAX in (start, size):
        signature, size, start = _END64.unpack(tail[-22 - 20 - 56 : -22 - 20])
        if signature != b"PK\6\6":
            raise _NotOurs
    position = start - (length - len(tail))
    end, found = position + size, {}
    while 0 <= position < end:
        signature, method, packed, plain, len_name, len_extra, len_comment, at = _ENTRY.unpack_from(tail, position)
        if signature != b"PK\1\2" or method:
            raise _NotOurs
        name = tail[position + 46 : position + 46 + len_name].decode("ascii").partition("/")[2]
        extra = tail[position + 46 + len_name : position + 46 + len_name + len_extra]
        plain, packed, at = _large(extra, [plain, packed, at])
        if name in found or plain != packed:
            raise _NotOurs
        found[name] = (at, plain)
        position += 46 + len_name + len_extra + len_comment
    return found


def _large(extra: bytes, values: list[int]) -> list[int]:
    """With those that do not fit into four bytes taken from the extra field (4.5.3)."""
    if _MAX in values:
        kind, _ = struct.unpack_from("<HH", extra)
        if kind != 1:
            raise _NotOurs
        rest = iter(struct.unpack_from(f"<{values.count(_MAX)}Q", extra, 4))
        values = [next(rest) if value == _MAX else value for value in values]
    return values


def _start(at: int, head: bytearray) -> int:
    signature, len_name, len_extra = _LOCAL.unpack_from(head, at)
    if signature != b"PK\3\4":
        raise _NotOurs
    return int(at + _LOCAL.size + len_name + len_extra)


def _entry(place: tuple[int, int], head: bytearray) -> bytes:
    start = _start(place[0], head)
    if start + place[1] > len(head):
        raise _NotOurs
    return bytes(head[start : start + place[1]])


class _Unpickler(pickle._Unpickler):
    """Knows what a plain tensor needs, and nothing that does anything.

    It is the one in Python: the one in C takes memory for as many memos as a pickle says that it has, up to 32 GiB.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILD:
            # New each time: whatever a pickle does to it must not outlive this item.
            return lambda *args: args
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return None
        if (module, name) == ("collections", "OrderedDict"):
            return lambda: None
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise _NotOurs

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or key != "0":
            raise _NotOurs
        return dtype


_REBUILD = frozenset({("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3")})


def _described(pickled: bytes, offset: int, size: int) -> Item:
    # Storage, place in it, shape, strides, whether it has a gradient, hooks; a dtype that has no storage of its own.
    storage, first, shape, strides, _, _, *more = _Unpickler(io.BytesIO(pickled)).load()
    [dtype] = more or [storage]
    if not isinstance(dtype, torch.dtype) or type(first) is not int:
        raise _NotOurs
    for part in (shape, strides):
        if type(part) is not tuple or any(type(value) is not int for value in part):
            raise _NotOurs
    return Item(offset=offset, size=size, dtype=dtype, shape=shape, strides=strides, first=first)
