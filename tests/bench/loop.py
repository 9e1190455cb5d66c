"""Steps per second of the same training loop in Moorage, plain DDP, accelerate and Lightning, on 2 ranks over gloo."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.harness import PROGRAMS, ROOT, Row, compare, job_folder
from bench.turns import RANKS, Conductor

TORCHRUN = (Path(sys.executable).parent / "torchrun", "--standalone", "--nproc-per-node", str(RANKS))
STEPS = 50
"""Steps in a turn, as in programs/common.py."""


def measure(*, sets: int = 8, rounds: int = 6) -> list[Row]:
    """A value is the median of the rounds of one set; every set starts all processes anew.

    Two starts of the very same program were seen to differ by 14 % for as long as they lived, by where their memory
    came to lie. So one start of each proves nothing, however many rounds it goes.
    """
    pace: dict[str, list[float]] = {}
    for _ in range(sets):
        for name, seconds in _one_set(rounds).items():
            pace.setdefault(name, []).append(STEPS / median(seconds))
    return [
        compare("loop", "steps/s", pace["moorage"], pace["ddp"], against="plain DDP", target=">= 0.97"),
        compare("loop", "steps/s", pace["moorage"], pace["accelerate"], against="accelerate", target="> 1"),
        compare("loop", "steps/s", pace["moorage"], pace["lightning"], against="Lightning", target="> 1"),
    ]


def _one_set(rounds: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as name, Conductor(Path(name)) as conductor:
        start_ours(conductor, PROGRAMS / "loop_moorage.py", Path(name))
        for peer in ("ddp", "accelerate", "lightning"):
            conductor.start(peer, [*TORCHRUN, PROGRAMS / f"loop_{peer}.py"])
        conductor.wait_until_ready(timeout=180)
        return {name: [seconds for (seconds,) in turns] for name, turns in conductor.rounds(rounds, timeout=60).items()}


def start_ours(conductor: Conductor, program: Path, folder: Path, **env: str) -> None:
    """The program under `train`, with its helpers importable."""
    job = job_folder(folder / "ml", program, {"moorage_ranks_per_host": str(RANKS), "moorage_strategy": "ddp"})
    env |= {"SAGEMAKER_BASE_DIR": str(job), "PYTHONPATH": str(PROGRAMS)}
    conductor.start("moorage", [sys.executable, ROOT / "train"], **env)
