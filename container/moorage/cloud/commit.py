"""Which commit a folder is at, as git says."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Commit:
    """id: 40 hexadecimal digits. dirty: tracked files differ from it, or there are files that git neither has nor
    ignores.
    """

    id: str
    dirty: bool

    def __str__(self) -> str:
        return self.id + ("-dirty" if self.dirty else "")


def head(folder: Path) -> Commit | None:
    """None outside of a git checkout, before the first commit, and where there is no git."""
    found = _git(folder, "rev-parse", "--verify", "HEAD")
    if found is None:
        return None
    return Commit(id=found.strip(), dirty=bool(_git(folder, "status", "--porcelain")))


def has(folder: Path, commit: str) -> bool:
    """Whether the checkout of `folder` knows that commit."""
    return _git(folder, "cat-file", "-e", f"{commit}^{{commit}}") is not None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=60
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
