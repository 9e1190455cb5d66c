"""Seconds from the command to the first line of the program on both ranks of one host."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.harness import PROGRAMS, ROOT, Row, compare, environment, job_folder, run, take_turns

BIN = Path(sys.executable).parent
PROGRAM = PROGRAMS / "first_line.py"
RANKS = 2
FIRST_LINE = re.compile(r"first line at ([0-9.]+)")


def measure(*, rounds: int = 7) -> list[Row]:
    values = take_turns({"train": ours, "torchrun": torchrun, "official toolkit": official}, rounds=rounds)
    return [
        compare("start", "s", values["train"], values["torchrun"], against="torchrun", target="<= 0.6"),
        compare("start", "s", values["train"], values["official toolkit"], against="official toolkit", target="<= 0.3"),
    ]


def ours() -> float:
    with tempfile.TemporaryDirectory() as folder:
        job = job_folder(Path(folder) / "ml", PROGRAM, {"moorage_ranks_per_host": str(RANKS)})
        return seconds([sys.executable, ROOT / "train"], environment(SAGEMAKER_BASE_DIR=str(job)))


def torchrun() -> float:
    return seconds([BIN / "torchrun", "--nproc-per-node", str(RANKS), PROGRAM], environment())


def official() -> float:
    """sagemaker-training's `train`, as the official PyTorch images set it up for torch_distributed jobs."""
    launcher = {
        "sagemaker_torch_distributed_enabled": "true",
        # The launcher's name for ranks per host: without GPUs it would start one.
        "sagemaker_mpi_num_of_processes_per_host": str(RANKS),
    }
    with tempfile.TemporaryDirectory() as folder:
        job = job_folder(Path(folder) / "ml", PROGRAM, launcher)
        module = "sagemaker_pytorch_container.training:main"
        return seconds([BIN / "train"], environment(SAGEMAKER_BASE_DIR=str(job), SAGEMAKER_TRAINING_MODULE=module))


def seconds(command: Sequence[str | Path], env: Mapping[str, str]) -> float:
    """From the start of `command` until the last rank's first line."""
    started = time.time()
    lines = FIRST_LINE.findall(run(command, env=env, timeout=120))
    assert len(lines) == RANKS, f"{len(lines)} ranks said their first line, not {RANKS}"
    return max(map(float, lines)) - started
