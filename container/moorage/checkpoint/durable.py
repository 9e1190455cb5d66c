"""Files that are whole or absent: written beside their name, hashed, flushed to the disk, renamed. No torch here."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from moorage.checkpoint.layout import IGNORE

CHUNK = 8 << 20
"""Bytes sent at a time."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """size: bytes. xxh3_128: of the whole file, 32 hexadecimal digits."""

    size: int
    xxh3_128: str


class HashingFile(io.RawIOBase):
    """A new file that hashes what it is given.

    The first error is kept and raised by `check`, and what follows is swallowed: torch.save turns an OSError met inside
    write() into a RuntimeError about zip positions.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        self._hash = xxhash.xxh3_128()
        self._size = 0
        self._error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                written = os.write(self._descriptor, data)
            except OSError as error:
                self._error = error
            else:
                self._hash.update(data[:written])
                self._size += written
                return written
        return len(data)

    def check(self) -> None:
        """Raises the OSError that an earlier write met."""
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        self.check()
        os.fsync(self._descriptor)

    def facts(self) -> FileFacts:
        return FileFacts(size=self._size, xxh3_128=self._hash.hexdigest())

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class Writer:
    """A stream for torch.save, whose position is exact at any time."""

    def __init__(self, raw: HashingFile) -> None:
        self._raw = raw
        self._buffered = io.BufferedWriter(raw, 1 << 20)
        self._facts: FileFacts | None = None
        self.position = 0

    def write(self, data: bytes | memoryview) -> int:
        self._facts = None
        self._buffered.write(data)
        self.position += len(data)
        return len(data)

    def flush(self) -> None:
        self._buffered.flush()

    def check(self) -> None:
        """Raises the OSError of an earlier write: worth asking between items, to end early on a full disk."""
        self._raw.check()

    def finish(self) -> FileFacts:
        """Wait until everything is on the disk. Raises the OSError of any write before."""
        if self._facts is None:
            self._buffered.flush()
            self._raw.sync()
            self._facts = self._raw.facts()
        return self._facts


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Write `path` whole or not at all; an existing one is replaced at once. Raises OSError.

    The folder itself has to be flushed afterwards, see `sync_folder`.
    """
    temporary = path.with_name(path.name + IGNORE)
    raw = HashingFile(temporary)
    try:
        with raw:
            writer = Writer(raw)
            yield writer
            # Once more, for a body that forgot: a file that is not on the disk must not get its name.
            writer.finish()
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> FileFacts:
    """`writing` for what is in memory, with the folder flushed. Raises OSError."""
    with writing(path) as writer:
        writer.write(data)
        facts = writer.finish()
    sync_folder(path.parent)
    return facts


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in `folder` last through a power cut. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def describe(error: OSError) -> str:
    """`ENOSPC (No space left on device)`."""
    name = errno.errorcode.get(error.errno, "") if error.errno else ""
    return f"{name} ({error.strerror})" if name else str(error)
