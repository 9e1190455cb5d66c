"""The machine as `detect` sees it: files under one root, and the few facts that no file holds."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Resolver = Callable[..., Any]
"""socket.getaddrinfo, or something like it."""


def _allowed_cpus() -> int:
    return len(os.sched_getaffinity(0))


def _size_of(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_blocks * stat.f_frsize


@dataclass(frozen=True, kw_only=True)
class System:
    """What is read of a machine. A test points `root` at a folder laid out like /proc, /sys and /dev.

    allowed_cpus: CPUs this process may run on. size_of: bytes of the file system that holds a folder.
    """

    root: Path = Path("/")
    resolve: Resolver = socket.getaddrinfo
    allowed_cpus: Callable[[], int] = _allowed_cpus
    size_of: Callable[[Path], int] = _size_of

    def text(self, path: str) -> str | None:
        """The file's text without its last newline; None when it is not there or may not be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").rstrip("\n")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def names(self, folder: str, pattern: str) -> tuple[str, ...]:
        """Names in `folder` that match, sorted; none where there is no such folder."""
        return tuple(sorted(path.name for path in (self.root / folder).glob(pattern)))


MACHINE = System()
