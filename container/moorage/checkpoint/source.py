"""Reading a checkpoint's files, wherever they lie, and telling whether they are what was written. No torch here.

Everything that chooses, verifies and loads reads through `Source` and `File`; `Folder` is the one on a disk.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import xxhash

from moorage.checkpoint.durable import FileFacts
from moorage.checkpoint.layout import step_name, step_of, steps
from moorage.errors import describe

PIECE = 512 << 10
"""Bytes hashed at a time: what was read is still in a core's own cache."""

_MOST_THREADS = 8


class File(Protocol):
    """A file of a checkpoint, open for reading. Several threads may call `read_into` at once."""

    @property
    def size(self) -> int:
        """Bytes."""

    def pieces(self) -> Iterator[memoryview]:
        """The whole file in order; a piece holds until the next is asked for. Raises OSError."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer`, of bytes, with what begins at `offset`. Raises OSError, also for a file that ends before."""


class Source(Protocol):
    """The files of one checkpoint. str() of it is for messages."""

    @property
    def name(self) -> str:
        """That of the checkpoint: `step-00000120`."""

    def open(self, name: str) -> AbstractContextManager[File]:
        """Raises OSError; FileNotFoundError when there is no such file."""


@dataclass(frozen=True)
class Folder:
    """A checkpoint in a folder of its own."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @contextmanager
    def open(self, name: str) -> Iterator[OnDisk]:
        """A regular file, never a link or a device. Raises OSError."""
        path = self.path / name
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # twice the read-ahead
            yield OnDisk(descriptor, facts.st_size)
        finally:
            os.close(descriptor)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class OnDisk:
    """An open file of a folder."""

    descriptor: int
    size: int

    def pieces(self) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(PIECE))
        position = 0
        while count := os.preadv(self.descriptor, [buffer], position):
            yield buffer[:count]
            position += count

    def read_into(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            count = os.preadv(self.descriptor, [buffer], offset)
            if not count:
                raise OSError(errno.ENODATA, f"the file ends {len(buffer)} bytes too early")
            buffer, offset = buffer[count:], offset + count


class Place(Protocol):
    """Where the checkpoints of a job are kept. str() of it is for messages."""

    def steps(self) -> list[int]:
        """Those of which there is something, whole or not, oldest first. Raises OSError."""

    def checkpoint(self, step: int) -> Source:
        """Whether it is there or not."""


@dataclass(frozen=True)
class Folders:
    """The checkpoints in a folder, each in its own; or the only one, where the folder is itself that of a step."""

    path: Path

    def steps(self) -> list[int]:
        one = step_of(self.path.name)
        return steps(self.path) if one is None else [one]

    def checkpoint(self, step: int) -> Folder:
        return Folder(self.path if self.path.name == step_name(step) else self.path / step_name(step))

    def __str__(self) -> str:
        return str(self.path)


def exists(source: Source, name: str) -> bool:
    """Raises OSError."""
    try:
        with source.open(name):
            return True
    except FileNotFoundError:
        return False


def read_bytes(source: Source, name: str, *, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes. Raises OSError, with EFBIG for a longer one."""
    with source.open(name) as file:
        if file.size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", name)
        data = bytearray(file.size)
        file.read_into(memoryview(data), 0)
        return bytes(data)


def problem(source: Source, name: str, expected: FileFacts, tell: Callable[[int], None] | None = None) -> str:
    """Why a file is not the one expected, empty when it is. tell: called with the bytes of each piece hashed."""
    hasher = xxhash.xxh3_128()
    try:
        with source.open(name) as file:
            if file.size != expected.size:
                return f"{file.size} bytes instead of {expected.size}"
            for piece in file.pieces():
                hasher.update(piece)
                if tell is not None:
                    tell(len(piece))
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return describe(error)
    return "" if hasher.hexdigest() == expected.xxh3_128 else "its content has changed (xxh3-128 differs)"


def verify(
    source: Source,
    files: Mapping[str, FileFacts],
    *,
    place: int = 0,
    mates: int = 1,
    threads: int = 1,
    tell: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """Those of `files` that are not whole, with why; the largest first.

    place, mates: of so many processes that share the work, this one's part. tell: called with bytes as they are hashed,
    by one thread at a time.
    """
    mine = sorted(files, key=lambda name: (-files[name].size, name))[place::mates]
    lock = threading.Lock()

    def count(size: int) -> None:
        with lock:
            assert tell is not None
            tell(size)

    def judge(name: str) -> str:
        return problem(source, name, files[name], count if tell is not None else None)

    with ThreadPoolExecutor(threads) as pool:
        return {name: reason for name, reason in zip(mine, pool.map(judge, mine), strict=True) if reason}


def num_threads(neighbours: int) -> int:
    """For reading in each of so many processes of one machine: what its cores can serve, at least one."""
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // neighbours))
