"""How far a rank has come, told to its supervisor through 16 bytes of shared memory: no message, no system call."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterator
from pathlib import Path

RUN_FOLDER = "MOORAGE_RUN_FOLDER"
"""Environment variable of each rank: the folder its supervisor made for it."""

_LAYOUT = struct.Struct("<qd")
_PREFIX = "progress-"


class Progress:
    """The rank's side: one file, mapped into memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def create(cls, folder: Path, local_rank: int) -> Progress:
        """Begin with no step made, wherever training resumes: what counts is a step beyond. Raises OSError."""
        path = folder / f"{_PREFIX}{local_rank}"
        with path.open("w+b") as file:
            file.write(_LAYOUT.pack(0, time.time()))
            file.flush()
            return cls(mmap.mmap(file.fileno(), _LAYOUT.size))

    def update(self, step: int) -> None:
        """step: optimizer steps done since the very first start of the job, after the step that was just made."""
        _LAYOUT.pack_into(self._memory, 0, step, time.time())

    def close(self) -> None:
        self._memory.close()


def read_progress(folder: Path, local_rank: int | None = None) -> int | None:
    """The highest step of this host's ranks, or of one: 0 while none was made, None when no rank has a Run."""
    return max((step for step, _ in _read(folder, local_rank)), default=None)


def last_step_at(folder: Path) -> float | None:
    """When this host's ranks last did a step, in seconds since 1970; None when no rank has a Run."""
    return max((moment for _, moment in _read(folder)), default=None)


def _read(folder: Path, local_rank: int | None = None) -> Iterator[tuple[int, float]]:
    for path in folder.glob(f"{_PREFIX}{'*' if local_rank is None else local_rank}"):
        data = path.read_bytes()
        if len(data) == _LAYOUT.size:  # shorter: a rank died between creating and filling it
            step, moment = _LAYOUT.unpack(data)
            yield int(step), float(moment)


def clear_progress(folder: Path) -> None:
    """Before an attempt: what the last one wrote says nothing of this one."""
    for path in folder.glob(f"{_PREFIX}*"):
        path.unlink()
