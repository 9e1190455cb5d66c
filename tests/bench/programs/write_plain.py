"""A rank that writes a new file, flushes it, and does nothing else: write_plain.py FOLDER BYTES RANKS [direct].

BYTES are spread evenly over the first RANKS ranks. direct: past the page cache.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path

from turns_client import Turns

PIECE = 8 << 20


def write(file: Path, data: mmap.mmap, flags: int) -> float:
    started = time.perf_counter()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags)
    view = memoryview(data)
    for start in range(0, len(view), PIECE):
        os.write(descriptor, view[start : start + PIECE])
    os.fsync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - started


def main(folder: Path, size: int, ranks: int, flags: int) -> None:
    rank = int(os.environ["RANK"])
    mine = size // ranks // mmap.PAGESIZE * mmap.PAGESIZE
    # What a rank writes was computed, so it is in memory and not zeros.
    data = mmap.mmap(-1, mine)
    data.write(os.urandom(1 << 20) * (mine >> 20))
    turns, number = Turns(rank), 0
    while turns.wait():
        number += 1
        turns.report(write(folder / f"{number}-{rank}", data, flags) if rank < ranks else 0.0)
        # Two are kept, as the toolkit does.
        (folder / f"{number - 2}-{rank}").unlink(missing_ok=True)
        os.sync()


main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), os.O_DIRECT if sys.argv[4:] == ["direct"] else 0)
