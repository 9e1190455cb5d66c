"""A short name for the code and command of a program, to notice two hosts that run different ones."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

log = logging.getLogger("moorage")

LARGE = 10 * 2**20
"""Bytes above which a file counts by its size only: data and weights, not code."""

_TOTAL = 512 * 2**20
"""Bytes after which all further files count by size only: starting must stay quick."""

_MOST_FILES = 20_000
"""Files after which no more are looked at: a program named by hand may lie in a home folder."""


def fingerprint(code: Path, command: Sequence[str], leave_out: Sequence[Path] = ()) -> str:
    """xxh3-128 over the relative paths and contents of the regular files under `code`, and `command`.

    Hidden folders, __pycache__, *.pyc, other file systems mounted below, and the folders in `leave_out` (a job's own,
    when it lies inside the code) do not count. `command` must hold nothing that differs between equal hosts, as the
    path of a temporary folder.
    """
    digest = xxhash.xxh3_128()
    for item in command:
        _add(digest, item.encode(errors="surrogateescape"))
    left = _TOTAL
    for path in itertools.islice(_files(code, {str(folder.resolve()) for folder in leave_out}), _MOST_FILES):
        _add(digest, str(path.relative_to(code)).encode(errors="surrogateescape"))
        left -= _add_file(digest, path, left)
    return digest.hexdigest()


def _add(digest: xxhash.xxh3_128, part: bytes) -> None:
    # The length goes first, so that no two lists of parts run together into the same bytes.
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _add_file(digest: xxhash.xxh3_128, path: Path, left: int) -> int:
    """Adds one file and returns the bytes read."""
    try:
        if path.is_symlink():
            _add(digest, os.fsencode(path.readlink()))
            return 0
        size = path.stat().st_size
        if size > min(LARGE, left):
            digest.update(size.to_bytes(8, "little"))
            return 0
        with path.open("rb") as file:
            content = file.read(size)  # no more: a file of a kernel can be without end
    except OSError as error:
        log.warning("%s is not in the code's fingerprint: %s", path, error.strerror)
        return 0
    _add(digest, content)
    return len(content)


def _files(code: Path, leave_out: set[str]) -> Iterator[Path]:
    device = code.stat().st_dev

    def counts(folder: Path) -> bool:
        if folder.name.startswith(".") or folder.name == "__pycache__" or os.path.realpath(folder) in leave_out:
            return False
        try:
            return folder.stat().st_dev == device
        except OSError:  # a link to nowhere
            return False

    for folder, folders, names in os.walk(code):
        folders[:] = sorted(name for name in folders if counts(Path(folder, name)))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.endswith(".pyc") and (path.is_symlink() or path.is_file()):
                yield path
