"""Bytes per second of a save behind the training, hash and flushes included, against a plain sequential write.

A save is measured from the return of `run.save()` until its manifest is there: the copy, both ranks' files, metadata
and manifest, each flushed and renamed, and their folders. The training waits meanwhile. A plain write is one file per
rank, or one in all, with one flush at its end.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.harness import OUT, PROGRAMS, Row, compare
from bench.loop import TORCHRUN, start_ours
from bench.turns import RANKS, Conductor

PLAIN = {"plain, both ranks": (str(RANKS),), "plain, one rank": ("1",), "direct, both ranks": (str(RANKS), "direct")}
TARGETS = {"plain, both ranks": ">= 0.8", "plain, one rank": ">= 0.8"}
LAYER = 12 * 1024**2
"""Bytes of a layer in programs/state.py, with AdamW's moments."""


def measure() -> list[Row]:
    return [*_one_size("200 MB", layers=16, rounds=9), *_one_size("1 GB", layers=80, rounds=4)]


def _one_size(size: str, *, layers: int, rounds: int) -> list[Row]:
    OUT.mkdir(parents=True, exist_ok=True)
    num_bytes = layers * LAYER
    with tempfile.TemporaryDirectory(dir=OUT) as name, Conductor(Path(name)) as conductor:
        start_ours(
            conductor, PROGRAMS / "write_moorage.py", Path(name),
            BENCH_LAYERS=str(layers), MOORAGE_CHECKPOINT_MINUTES="0",
        )  # fmt: skip
        for number, (peer, arguments) in enumerate(PLAIN.items()):
            folder = Path(name) / f"plain-{number}"
            folder.mkdir()
            conductor.start(peer, [*TORCHRUN, PROGRAMS / "write_plain.py", folder, str(num_bytes), *arguments])
        conductor.wait_until_ready(timeout=120)
        pace = {
            name: [num_bytes / 1e6 / seconds for (seconds,) in turns]
            for name, turns in conductor.rounds(rounds, timeout=60).items()
        }
    return [
        compare(f"write, {size}", "MB/s", pace["moorage"], pace[peer], against=peer, target=TARGETS.get(peer, ""))
        for peer in PLAIN
    ]
