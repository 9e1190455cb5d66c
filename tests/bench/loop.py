"""Steps per second of the same training loop in Moorage, plain DDP, accelerate and Lightning, on 2 ranks over gloo."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.harness import PROGRAMS, ROOT, Row, compare, job_folder
from bench.turns import RANKS, Conductor

TORCHRUN = (Path(sys.executable).parent / "torchrun", "--standalone", "--nproc-per-node", str(RANKS))
STEPS = 50
"""Steps in a turn, as in programs/common.py."""


def measure(*, rounds: int = 40) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Conductor(folder) as conductor:
            start_ours(conductor, PROGRAMS / "loop_moorage.py", folder)
            for peer in ("ddp", "accelerate", "lightning"):
                conductor.start(peer, [*TORCHRUN, PROGRAMS / f"loop_{peer}.py"])
            conductor.wait_until_ready(timeout=180)
            seconds = conductor.rounds(rounds, timeout=60)
    pace = {name: [STEPS / value for (value,) in values] for name, values in seconds.items()}
    return [
        compare("loop", "steps/s", pace["moorage"], pace["ddp"], against="plain DDP", target=">= 0.97"),
        compare("loop", "steps/s", pace["moorage"], pace["accelerate"], against="accelerate", target="> 1"),
        compare("loop", "steps/s", pace["moorage"], pace["lightning"], against="Lightning", target="> 1"),
    ]


def start_ours(conductor: Conductor, program: Path, folder: Path) -> None:
    """The program under `train`, with its helpers importable."""
    job = job_folder(folder / "ml", program, {"moorage_ranks_per_host": str(RANKS), "moorage_strategy": "ddp"})
    conductor.start("moorage", [sys.executable, ROOT / "train"], SAGEMAKER_BASE_DIR=str(job), PYTHONPATH=str(PROGRAMS))
