"""Seconds that `moorage run` takes over a plain `docker run` of the same job on one host, from start to end."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.harness import PROGRAMS, ROOT, Absent, Row, job_folder, run, take_turns
from bench.image import IMAGE, docker, docker_environment

PROGRAM = PROGRAMS / "first_line.py"
MOST = 1.5
"""Seconds."""


def measure(*, rounds: int = 7) -> list[Row]:
    """Raises Absent without an engine or the image."""
    inspect = ["docker", "image", "inspect", IMAGE]
    if not shutil.which("docker") or subprocess.run(inspect, capture_output=True, check=False).returncode:
        raise Absent(f"there is no image {IMAGE}: `make engine base build`")
    taken = take_turns({"moorage run": rehearsed, "docker run": plain}, rounds=rounds)
    return [overhead(taken["moorage run"], taken["docker run"])]


def overhead(ours: list[float], theirs: list[float]) -> Row:
    """A difference and no ratio: what a run adds does not grow with the job."""
    more = median(our - their for our, their in zip(ours, theirs, strict=True))
    ratio = median(our / their for our, their in zip(ours, theirs, strict=True))
    return Row(
        name="moorage run, more", value=more, unit="s", against="docker run", ratio=ratio,
        target=f"<= {MOST} s more", holds=more <= MOST,
    )  # fmt: skip


def rehearsed() -> float:
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--image", IMAGE, "--ranks-per-host", "1", "--env", "OMP_NUM_THREADS=1", "--quiet"]
        command = [sys.executable, "-m", "moorage.cli", "run", str(PROGRAM), *flags]
        path = {"PYTHONPATH": str(ROOT / "container"), "XDG_STATE_HOME": folder}
        return _seconds(command, {**docker_environment(), **path}, Path(folder))


def plain() -> float:
    with tempfile.TemporaryDirectory() as folder:
        job = job_folder(Path(folder) / "ml", PROGRAM, {"moorage_ranks_per_host": "1"})
        # The files name folders as the container sees them.
        for file in (job / "input" / "config").iterdir():
            file.write_text(file.read_text().replace(str(job), "/opt/ml"))
        return _seconds([*docker("--volume", f"{job}:/opt/ml", IMAGE, "train")], docker_environment(), Path(folder))


def _seconds(command: list[str], env: dict[str, str], cwd: Path) -> float:
    began = time.perf_counter()
    run(command, env=env, timeout=120, cwd=cwd)
    return time.perf_counter() - began
