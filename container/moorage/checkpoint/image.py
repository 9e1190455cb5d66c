"""One rank's file as it lies in memory: what torch.save writes for each item, with room for the values.

Made once for a plan; a save then fills in values and writes the whole, with nothing to serialise.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, cast

import torch
from torch import Tensor

from moorage.checkpoint.durable import BLOCK

_ALIGNED = 64
"""Bytes: an item begins at a multiple, as its values do within it, so that they lie so in the file and in memory."""

_LONG = 4096
"""Bytes: torch.save describes a tensor in shorter writes; one that is as long as this is of values."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What torch.save writes before and after the values of a tensor."""

    head: bytes
    tail: bytes


def outline(tensor: Tensor) -> Outline:
    """Of any dense tensor with this type, shape and strides, on whatever device."""
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    if like.nbytes >= _LONG:
        recorder = _Recorder(like.nbytes)
        with _without_checksums():
            torch.save(like, cast(IO[bytes], recorder))
        return recorder.outline()
    ones, zeros = (_saved(like, byte) for byte in (0xFF, 0x00))
    start = next((place for place, pair in enumerate(zip(ones, zeros, strict=True)) if pair[0] != pair[1]), len(zeros))
    return Outline(head=zeros[:start], tail=zeros[start + like.nbytes :])


class _Recorder:
    """A file for torch.save that throws the values away, so that it never holds more than a description."""

    def __init__(self, size: int) -> None:
        self._size, self._left = size, size
        self._head, self._tail = bytearray(), bytearray()

    def write(self, data: memoryview) -> int:
        if len(data) >= _LONG:
            self._left -= len(data)
        elif self._left == self._size:
            self._head += data
        else:
            self._tail += data
        return len(data)

    def flush(self) -> None: ...

    def outline(self) -> Outline:
        assert not self._left, f"torch.save wrote {self._size - self._left} bytes of values instead of {self._size}"
        return Outline(head=bytes(self._head), tail=bytes(self._tail))


def _saved(tensor: Tensor, byte: int) -> bytes:
    torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(byte)
    buffer = io.BytesIO()
    with _without_checksums():
        torch.save(tensor, buffer)
    return buffer.getvalue()


@contextmanager
def _without_checksums() -> Iterator[None]:
    """The values are not there yet, and torch.load asks for no CRC-32: the file's hash tells whether it is whole."""
    usual = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(usual)


class Image:
    """Room for items like `tensors`. copies: for each, where its values go, on the CPU. places: (offset, length) of
    each in the file, in bytes.

    pinned: page-locked memory, for copies from a GPU.
    """

    def __init__(self, tensors: Sequence[Tensor], *, pinned: bool) -> None:
        dense = [torch.empty_like(tensor, device="meta") for tensor in tensors]
        found: dict[tuple[torch.dtype, torch.Size, tuple[int, ...]], Outline] = {}
        outlines, places, end = [], [], 0
        for one in dense:
            key = (one.dtype, one.shape, one.stride())
            if key not in found:
                found[key] = outline(one)
            outlines.append(found[key])
            start = _up(end, _ALIGNED)
            end = start + len(found[key].head) + one.nbytes + len(found[key].tail)
            places.append((start, end - start))
        self._memory, self.bytes = _room(_up(max(end, 1), BLOCK), pinned=pinned)
        self.places = tuple(places)
        self.copies = [
            self._lay_out(one, *given) for one, given in zip(dense, zip(outlines, places, strict=True), strict=True)
        ]

    def _lay_out(self, like: Tensor, outline: Outline, place: tuple[int, int]) -> Tensor:
        start, end = place[0], sum(place)
        values = start + len(outline.head)
        self.bytes[start:values] = outline.head
        self.bytes[end - len(outline.tail) : end] = outline.tail
        if not like.nbytes:
            return torch.empty_like(like, device="cpu")
        room = self._memory[values : values + like.nbytes]
        return room.view(like.dtype).as_strided(like.shape, like.stride())


def _room(size: int, *, pinned: bool) -> tuple[Tensor, memoryview]:
    """Zeros, at the beginning of a page."""
    if pinned:
        memory = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
        return memory, memoryview(memory.numpy())  # type: ignore[arg-type]
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A copy into large pages was seen to take half as long; a kernel may have been built without them.
    with suppress(OSError, AttributeError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8), memoryview(pages)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
