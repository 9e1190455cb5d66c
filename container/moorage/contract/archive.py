"""Unpacking an archive that others may have written (tarfile's own data filter is not in Python 3.11.2).

Regular files and folders only; no absolute name, no '..', no link, no device; size, number, depth and mode bounded.
All of it appears, or nothing.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from moorage.errors import ProgramError

MAX_BYTES = 2 * 2**30
MAX_MEMBERS = 50_000
MAX_DEPTH = 64

_CHUNK = 64 * 2**10
"""Bytes of one read. tarfile reads an extended header in one go, so this also bounds those."""


_BROKEN = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError)


class _Unsafe(Exception):
    """A member that will not be unpacked, with the reason."""


def extract(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS) -> None:
    """Unpack the tar.gz `archive` into `folder`, which must be empty or absent.

    Raises ProgramError naming the archive's member; nothing is left of it then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fresh.chmod(0o755)
        _unpack(archive, fresh, max_bytes, max_members)
        fresh.rename(folder)
    except OSError as error:
        raise ProgramError(f"cannot unpack {archive} to {folder}", why=_text(error)) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _unpack(archive: Path, folder: Path, max_bytes: int, max_members: int) -> None:
    member = "its first member"
    try:
        with gzip.open(archive, "rb") as plain:
            reader = _Reader(plain, limit=2 * max_bytes)
            with tarfile.open(fileobj=reader, mode="r:", encoding="utf-8") as tar:
                left, number = max_bytes, 0
                while info := tar.next():
                    member, number, left = repr(info.name), number + 1, left - info.size
                    _check(info)
                    if left < 0 or number > max_members:
                        raise _Unsafe(f"beyond the limit of {max_bytes} bytes or {max_members} members")
                    _write(tar, info, folder)
                    member = f"what follows {member}"
            # tarfile takes a broken header for the end of the archive, and leaves its checksum unread.
            if reader.header.strip(b"\0"):
                raise tarfile.ReadError("broken header")
            reader.finish()
    except _Unsafe as error:
        raise ProgramError(
            f"{archive} was not unpacked: {member} is {error}",
            why="only regular files and folders inside the archive are taken",
            fix="pack the code anew: tar -C FOLDER --dereference -czf code.tar.gz .",
        ) from None
    except _BROKEN as error:
        raise ProgramError(
            f"{archive} was not unpacked: {member} cannot be read",
            why=f"{type(error).__name__}: {error}",
            fix="the archive must be a whole tar.gz",
        ) from None
    except OSError as error:
        raise ProgramError(f"{archive} was not unpacked: {member} cannot be written", why=_text(error)) from None


def _check(info: tarfile.TarInfo) -> None:
    name = PurePosixPath(info.name)
    if info.issym() or info.islnk():
        raise _Unsafe("a link")
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or info.issparse():
        raise _Unsafe("neither a regular file nor a folder")
    if info.size < 0:
        raise _Unsafe("of negative size")
    if name.is_absolute() or ".." in name.parts or "\0" in info.name:
        raise _Unsafe("outside the folder")
    if len(name.parts) > MAX_DEPTH:
        raise _Unsafe(f"more than {MAX_DEPTH} folders deep")


def _write(tar: tarfile.TarFile, info: tarfile.TarInfo, folder: Path) -> None:
    # No link is ever made below `folder`, so a path without '..' stays inside it.
    path = folder / info.name
    if info.isdir():
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    content = tar.extractfile(info)
    with path.open("wb") as file:
        if content:
            shutil.copyfileobj(content, file, _CHUNK)
    path.chmod(0o755 if info.mode & 0o100 else 0o644)


def _text(error: OSError) -> str:
    return f"{error.strerror or error} (errno {error.errno})"


class _Reader(io.RawIOBase):
    """The decompressed archive, forwards only, in bounded reads, up to `limit` bytes.

    header: what the last read of a header's size gave.
    """

    def __init__(self, plain: gzip.GzipFile, limit: int) -> None:
        super().__init__()
        self._plain, self._limit = plain, limit
        self.header = b""

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise _Unsafe(f"described by a header of {size} bytes")
        data = self._plain.read(size)
        if size == tarfile.BLOCKSIZE:
            self.header = data
        return data

    def finish(self) -> None:
        """Read what is left, so that the checksum at the end is compared."""
        while self._plain.read(_CHUNK):
            if self.tell() > self._limit:
                raise _Unsafe("too large")

    def tell(self) -> int:
        return self._plain.tell()

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        if whence != os.SEEK_SET or not self.tell() <= position <= self._limit:
            raise _Unsafe("too large, or points backwards")
        return self._plain.seek(position)
