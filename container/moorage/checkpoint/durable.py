"""Files that are whole or absent: written beside their name, hashed, flushed to the disk, renamed. No torch here."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from moorage.checkpoint.layout import IGNORE

log = logging.getLogger("moorage")

CHUNK = 8 << 20
"""Bytes written or sent at a time."""

BLOCK = 4096
"""Bytes: a multiple of what disks read and write at once."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """size: bytes. xxh3_128: of the whole file, 32 hexadecimal digits."""

    size: int
    xxh3_128: str


class Writer:
    """A new file, hashed as it is written. position: bytes written so far.

    What begins and ends with a block, in memory as in the file, goes to the disk without a copy in the page cache: the
    copy would take the time of a core that training is to have. Anything else goes the usual way.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        self._path = path
        self._hash = xxhash.xxh3_128()
        self._usual = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        self._direct = False
        self._may_be_direct = hasattr(os, "O_DIRECT")
        self._facts: FileFacts | None = None
        self.position = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Raises OSError."""
        self._facts = None
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            piece = view[start : start + CHUNK]
            self._hash.update(piece)
            self._put(piece)
        return len(view)

    def _put(self, piece: memoryview) -> None:
        while piece:
            try:
                self._switch(self._may_be_direct and self.position % BLOCK == 0 and _is_blocks(piece))
                count = os.write(self._descriptor, piece)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._may_be_direct:
                    raise
                log.debug("%s is written through the page cache: its disk wants no direct writes", self._path)
                self._may_be_direct = False
            else:
                self.position += count
                piece = piece[count:]

    def _switch(self, direct: bool) -> None:
        if direct != self._direct:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, self._usual | (os.O_DIRECT if direct else 0))
            self._direct = direct

    def finish(self) -> FileFacts:
        """Return when everything is on the disk. Raises OSError."""
        if self._facts is None:
            os.fsync(self._descriptor)
            self._facts = FileFacts(size=self.position, xxh3_128=self._hash.hexdigest())
        return self._facts

    def close(self) -> None:
        os.close(self._descriptor)


def _is_blocks(piece: memoryview) -> bool:
    if piece.readonly or len(piece) % BLOCK:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(piece)) % BLOCK == 0


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Write `path` whole or not at all; an existing one is replaced at once. Raises OSError.

    The folder itself has to be flushed afterwards, see `sync_folder`.
    """
    temporary = path.with_name(path.name + IGNORE)
    made = Writer(temporary)
    try:
        with closing(made) as writer:
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
