"""How far a rank has come, told to its supervisor through a few bytes of shared memory: no message, no system call.

One file for each rank with a Run, in the folder its supervisor made. Nothing keeps a reader from seeing some numbers of
one moment and some of the next; each of them is whole.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUN_FOLDER = "MOORAGE_RUN_FOLDER"
"""Environment variable of each rank: the folder its supervisor made for it."""

STACK_SIGNAL = 50
"""At which a rank with a Run writes the stacks of its threads to `stacks_file`. A real-time signal of Linux, from the
middle of their range: programs use the plain ones, and the C library and debuggers those at the ends."""

_LAYOUT = struct.Struct("<qdqqqdd")
_PREFIX = "progress-"
_STACKS = "stacks-"


class Activity(enum.IntEnum):
    """What a rank is at. Only between two steps of TRAINING is it known how long the next sign of life may take.

    LEFT: it was stopped, and is done with all that the job wants of it; only its process has not ended yet.
    """

    SET_UP = 0
    TRAINING = 1
    EVALUATING = 2
    SAVING = 3
    FINISHING = 4
    LEFT = 5


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a rank's file says.

    step: optimizer steps done. at: when, in seconds since 1970. signs: of life so far, beside steps. pid: of the
    process with the Run. input_seconds, compute_seconds: that it took by itself since its start, in which it waited for
    no other rank: for its data, and in the forward passes as far as that can be measured.
    """

    local_rank: int
    step: int
    at: float
    signs: int
    activity: Activity
    pid: int
    input_seconds: float
    compute_seconds: float


class Progress:
    """The rank's side: one file, mapped into memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._pid = os.getpid()
        self._step, self._at, self._signs = 0, time.time(), 0
        self._seconds = (0.0, 0.0)
        self.activity = Activity.SET_UP
        self._write()

    @classmethod
    def create(cls, folder: Path, local_rank: int) -> Progress:
        """Begin with no step made, wherever training resumes: what counts is a step beyond. Raises OSError."""
        with (folder / f"{_PREFIX}{local_rank}").open("w+b") as file:
            file.truncate(_LAYOUT.size)
            return cls(mmap.mmap(file.fileno(), _LAYOUT.size))

    def update(self, step: int, own: tuple[float, float] = (0.0, 0.0)) -> None:
        """step: optimizer steps done since the very first start of the job, after the step that was just made.
        own: seconds for input and for computing so far, as a `Mark` has them.
        """
        self._step, self._at, self._seconds = step, time.time(), own
        self._write()

    def sign(self) -> None:
        """Still alive, and at work on something other than a step."""
        self._signs += 1
        self._write()

    def enter(self, activity: Activity) -> None:
        self.activity = activity
        self.sign()

    def close(self) -> None:
        self._memory.close()

    def _write(self) -> None:
        _LAYOUT.pack_into(self._memory, 0, self._step, self._at, self._signs, self.activity, self._pid, *self._seconds)


def read_marks(folder: Path, local_rank: int | None = None) -> Iterator[Mark]:
    """Of this host's ranks that have a Run, or of one of them."""
    for path in folder.glob(f"{_PREFIX}{'*' if local_rank is None else local_rank}"):
        data = path.read_bytes()
        if len(data) != _LAYOUT.size:  # a rank died between creating and filling it
            continue
        step, at, signs, activity, pid, input_seconds, compute_seconds = _LAYOUT.unpack(data)
        if not pid:
            continue
        yield Mark(
            local_rank=int(path.name.removeprefix(_PREFIX)), step=step, at=at, signs=signs, activity=Activity(activity),
            pid=pid, input_seconds=input_seconds, compute_seconds=compute_seconds,
        )  # fmt: skip


def read_progress(folder: Path, local_rank: int | None = None) -> int | None:
    """The highest step of this host's ranks, or of one: 0 while none was made, None when no rank has a Run."""
    return max((mark.step for mark in read_marks(folder, local_rank)), default=None)


def last_step_at(folder: Path) -> float | None:
    """When this host's ranks last did a step, in seconds since 1970; None when no rank has a Run."""
    return max((mark.at for mark in read_marks(folder)), default=None)


def stacks_file(folder: Path, local_rank: int) -> Path:
    """Where a rank writes its stacks, one after the other."""
    return folder / f"{_STACKS}{local_rank}"


def clear_progress(folder: Path) -> None:
    """Before an attempt: what the last one wrote says nothing of this one."""
    for path in [*folder.glob(f"{_PREFIX}*"), *folder.glob(f"{_STACKS}*")]:
        path.unlink()
