"""A disk of a host's own, so that it can be full: its folder in memory, whose size can be changed while it is used."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from moorage.errors import EngineError

_SIZE = "50%"
"""Of the machine's memory, the usual size; only what is written takes any."""


class Disk:
    """Mounted at `folder` until `close`. Raises EngineError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if os.getuid() != 0:
            raise EngineError(
                "fill-disk needs root",
                why="it mounts a small file system for the host's folder, and fills that",
                fix="run it by sudo, or leave the fault out",
            )
        folder.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=755", "moorage", str(folder))

    def fill(self, on: bool) -> None:
        """Not a byte more fits; or again as much as at first."""
        status = os.statvfs(self._folder)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        size = str(max(used, status.f_frsize)) if on else _SIZE
        _run("mount", "-o", f"remount,size={size}", str(self._folder))

    def close(self) -> None:
        _run("umount", "--lazy", str(self._folder))


def unmount_below(folder: Path) -> None:
    """What a run that died left mounted."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        place = line.split()[1].replace("\\040", " ")
        if Path(place).is_relative_to(folder.absolute()):
            _run("umount", "--lazy", place)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(
            f"{command[0]} failed for {command[-1]}",
            why=done.stderr.strip(),
            fix="fill-disk needs to mount: run as root",
        )
