"""Whether to try again after a failure."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from moorage.contract import ledger
from moorage.contract.failure import Failure

_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Decision:
    again: bool
    why: str


def decide(cause: Failure, *, made: int, most: int, progressed: bool) -> Decision:
    """made: restarts so far; most: allowed. progressed: since the attempt began.

    A rank that died by a signal may have been unlucky, and a port may have been taken: the first time they get another
    try whatever they did. A program that ends by itself before its first step would do so again.
    """
    if cause.rank is None:
        return Decision(again=False, why="it is not a rank that failed")
    if made >= most:
        return Decision(again=False, why=f"{made} of {most} restarts are used up (setting max_restarts)")
    if progressed:
        return Decision(again=True, why="progress was made since the last start")
    unlucky = bool(cause.signal) or bool(_PORT_TAKEN.search(cause.message))
    if unlucky and made == 0:
        return Decision(again=True, why="it did not end by itself")
    return Decision(again=False, why="no progress was made since the last start, so it would happen again")


def folder_state(folder: Path) -> str:
    """Changes when a program saves something. What is unfinished, the marks of the platform's upload, and the ledger
    do not count.
    """
    digest = hashlib.blake2b(digest_size=16)
    own = str(folder / ledger.FOLDER)
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if ".sagemaker-" not in name and os.path.join(parent, name) != own  # noqa: PTH118
        )
        for name in sorted(files):
            if ".sagemaker-" in name:
                continue
            try:
                found = os.stat(os.path.join(parent, name))  # noqa: PTH116, PTH118  (thousands of files)
            except OSError:
                continue
            digest.update(f"{parent}/{name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
