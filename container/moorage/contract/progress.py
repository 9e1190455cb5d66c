"""How far a rank has come, told to its supervisor through 16 bytes of shared memory: no message, no system call."""

from __future__ import annotations

import mmap
import struct
import time
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


def read_progress(folder: Path) -> int | None:
    """The highest step of this host's ranks, 0 while none made one, None when no rank has a Run."""
    steps = []
    for path in folder.glob(f"{_PREFIX}*"):
        data = path.read_bytes()
        if len(data) == _LAYOUT.size:  # shorter: a rank died between creating and filling it
            steps.append(int(_LAYOUT.unpack(data)[0]))
    return max(steps, default=None)


def clear_progress(folder: Path) -> None:
    """Before an attempt: what the last one wrote says nothing of this one."""
    for path in folder.glob(f"{_PREFIX}*"):
        path.unlink()
