"""The file system of an image, read once from what `docker export` gives: names, modes, times, small files whole."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from image.containers import Containers

SMALL = 1 << 20
"""Bytes up to which a file's content is kept to be searched. Larger ones are libraries and data."""

_OF_THE_ENGINE = ("dev/", "proc/", "sys/", ".dockerenv", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab")
"""What the engine puts into every container."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One name in an image. content: of a file no larger than SMALL; the first bytes of others."""

    name: str
    kind: bytes
    mode: int
    size: int
    mtime: int
    link: str
    content: bytes

    @property
    def is_file(self) -> bool:
        return self.kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE)

    @property
    def is_link(self) -> bool:
        return self.kind == tarfile.SYMTYPE


class _Stream(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self.rest:
            chunk = next(self.chunks, None)
            if chunk is None:
                return 0
            self.rest = memoryview(chunk)
        length = min(len(buffer), len(self.rest))
        buffer[:length] = self.rest[:length]
        self.rest = self.rest[length:]
        return length


def _content(file: IO[bytes], size: int, whole: bool) -> bytes:
    if size <= SMALL:
        return file.read()
    return hashlib.file_digest(file, "sha256").digest() if whole else file.read(64)


def contents(containers: Containers, image: str = "", *, whole: bool = False) -> dict[str, Entry]:
    """Every name in the image, without the leading slash. whole: the content of a large file is its SHA-256."""
    container = containers.start("true", image=image, network="none")
    container.wait()
    stream = io.BufferedReader(_Stream(container.engine.export(chunk_size=1 << 21)), 1 << 21)
    found = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.name.startswith(_OF_THE_ENGINE):
                continue
            file = archive.extractfile(member) if member.isreg() else None
            found[member.name] = Entry(
                name=member.name,
                kind=member.type,
                mode=member.mode & 0o7777,
                size=member.size,
                mtime=int(member.mtime),
                link=member.linkname,
                content=_content(file, member.size, whole) if file else b"",
            )
    return found
