"""Seconds from the call of `run.track()` until a job that starts again has its state, all of it verified.

Against both ranks reading the same bytes into memory with nothing done to them. Each reading is a start of its own.
cold: nothing of the checkpoint is in the page cache, as after a restart within a job, since saves go past it. warm: all
is, as after a download.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.harness import OUT, PROGRAMS, ROOT, Row, compare, environment, job_folder, run, take_turns
from bench.loop import TORCHRUN
from bench.turns import RANKS

CACHES = ("cold", "warm")

SETTLE = 6.0
"""Seconds before each reading. A virtual machine hands memory that is free for some seconds back to its host, and then
pays for it again, ten times what a page costs else: whoever came sooner after the last process would be served better.
"""


def measure() -> list[Row]:
    return [*_one_size("200 MB", layers=16, rounds=5), *_one_size("1 GB", layers=80, rounds=5)]


def _one_size(size: str, *, layers: int, rounds: int) -> list[Row]:
    OUT.mkdir(parents=True, exist_ok=True)
    settings = {"moorage_ranks_per_host": str(RANKS), "moorage_strategy": "ddp", "moorage_checkpoint_minutes": "0"}
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        job = job_folder(Path(name) / "ml", PROGRAMS / "restore_moorage.py", settings)
        env = environment(SAGEMAKER_BASE_DIR=str(job), PYTHONPATH=str(PROGRAMS), BENCH_LAYERS=str(layers))
        train = partial(run, [sys.executable, ROOT / "train"], env=env, timeout=120)
        train()
        (checkpoint,) = (job / "checkpoints").glob("step-*")
        plain = partial(run, [*TORCHRUN, PROGRAMS / "restore_plain.py", checkpoint], env=environment(), timeout=120)
        commands = {"moorage": train, "plain": plain}
        contenders = {
            f"{who}, {cache}": partial(restored, command, checkpoint, cache)
            for cache in CACHES
            for who, command in commands.items()
        }
        taken = take_turns(contenders, rounds=rounds)
    return [
        compare(
            f"restore, {size}, {cache}", "s", taken[f"moorage, {cache}"], taken[f"plain, {cache}"],
            against="plain read", target="<= 1.3",
        )
        for cache in CACHES
    ]  # fmt: skip


def restored(command: Callable[[], str], checkpoint: Path, cache: str) -> float:
    """Seconds, of the slower rank."""
    for file in checkpoint.iterdir():
        with file.open("rb") as opened:
            # Both ways from nothing: pages that were read last are kept in another manner.
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while cache == "warm" and opened.read(1 << 20):
                pass
    time.sleep(SETTLE)
    found = re.findall(r"restored in (\S+)", said := command())
    assert len(found) == RANKS, said
    return max(map(float, found))
