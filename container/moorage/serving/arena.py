"""Where the bodies of requests lie: memory that the front writes and model processes read, bounded from the start."""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import insort

ALIGNMENT = 4096
KEPT = 64 * 1024 * 1024
"""Bytes at the beginning that are kept when they are free: new pages cost as much as the copy into them."""

_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_libc = ctypes.CDLL(None, use_errno=True)


class Extents:
    """What is free between 0 and `capacity`: the first that is large enough is taken, so that low pages are reused."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = [(0, capacity)] if capacity else []
        """Offset and size, by offset; no two touch."""

    def take(self, size: int) -> int | None:
        """The offset; None where no piece is large enough."""
        for index, (offset, room) in enumerate(self._free):
            if room >= size:
                if room == size:
                    del self._free[index]
                else:
                    self._free[index] = (offset + size, room - size)
                return offset
        return None

    def give(self, offset: int, size: int) -> None:
        insort(self._free, (offset, size))
        index = self._free.index((offset, size))
        for left in (index, index - 1):
            if 0 <= left < len(self._free) - 1:
                (start, room), (following, more) = self._free[left], self._free[left + 1]
                if start + room == following:
                    self._free[left : left + 2] = [(start, room + more)]

    @property
    def free(self) -> int:
        return sum(size for _, size in self._free)


class Slot:
    """Room for one body. `free` it once; after that the view is another's."""

    __slots__ = ("_arena", "_room", "offset", "size", "view")

    def __init__(self, arena: Arena, offset: int, size: int, room: int) -> None:
        self._arena, self._room, self.offset, self.size = arena, room, offset, size
        self.view = arena.view[offset : offset + size]

    def free(self) -> None:
        self.view.release()
        self._arena.give_back(self.offset, self._room)


class Arena:
    """The front's side. descriptor: of the memory, for model processes to inherit. Pages exist once they are used."""

    def __init__(self, capacity: int) -> None:
        self.capacity = -(-capacity // ALIGNMENT) * ALIGNMENT
        self.descriptor = os.memfd_create("moorage-bodies")
        os.ftruncate(self.descriptor, self.capacity)
        self.view = memoryview(mmap.mmap(self.descriptor, self.capacity))
        self._extents = Extents(self.capacity)

    def slot(self, size: int) -> Slot | None:
        """None where there is no room now."""
        room = max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
        offset = self._extents.take(room)
        return None if offset is None else Slot(self, offset, size, room)

    @property
    def used(self) -> int:
        return self.capacity - self._extents.free

    def give_back(self, offset: int, room: int) -> None:
        self._extents.give(offset, room)
        if offset + room > KEPT:
            hole = max(offset, KEPT)
            # Of what cannot be given back, nothing is lost: the pages are used again.
            _libc.fallocate(
                self.descriptor,
                _PUNCH_HOLE | _KEEP_SIZE,
                ctypes.c_long(hole),
                ctypes.c_long(offset + room - hole),
            )


class Bodies:
    """The model process's side: it can read, and nothing else."""

    def __init__(self, descriptor: int, capacity: int) -> None:
        self._view = memoryview(mmap.mmap(descriptor, capacity, prot=mmap.PROT_READ))

    def body(self, offset: int, length: int) -> memoryview:
        return self._view[offset : offset + length]
