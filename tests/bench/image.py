"""Seconds from `docker run` to the first line of the program on both ranks, and of `import torch` in the image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.harness import PROGRAMS, Absent, Row, compare, environment, job_folder, run, take_turns
from bench.start import RANKS, seconds

IMAGE = os.environ.get("MOORAGE_TEST_IMAGE", "moorage:cpu")

IMPORTS = """
import os, subprocess, sys, time
def seconds(**env):
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, env={**os.environ, **env})
    return time.perf_counter() - started
first, again = seconds(), seconds()
# A place for bytecode that has none, and gets none.
print("imports", first, again, seconds(PYTHONPYCACHEPREFIX="/none", PYTHONDONTWRITEBYTECODE="1"))
"""


def measure(*, rounds: int = 7) -> list[Row]:
    """Raises Absent without an engine or the image."""
    inspect = ["docker", "image", "inspect", IMAGE]
    if not shutil.which("docker") or subprocess.run(inspect, capture_output=True, check=False).returncode:
        raise Absent(f"there is no image {IMAGE}: `make engine base build`")
    starts = take_turns({"train": ours, "torchrun": torchrun}, rounds=rounds)
    first, again, without = zip(*[import_torch() for _ in range(rounds)], strict=True)
    return [
        compare("docker run", "s", starts["train"], starts["torchrun"], against="bare torchrun", target="<= 0.7"),
        compare("import torch", "s", first, again, against="a warm second one", target="<= 1.3"),
        compare("import torch", "s", again, without, against="no bytecode", target="<= 0.7"),
    ]


def ours() -> float:
    with tempfile.TemporaryDirectory() as folder:
        job = job_folder(Path(folder) / "ml", PROGRAMS / "first_line.py", {"moorage_ranks_per_host": str(RANKS)})
        # The files name folders as the container sees them.
        for file in (job / "input" / "config").iterdir():
            file.write_text(file.read_text().replace(str(job), "/opt/ml"))
        return seconds(docker("--volume", f"{job}:/opt/ml", IMAGE, "train"), docker_environment())


def torchrun() -> float:
    program = ("torchrun", "--nproc-per-node", str(RANKS), "/programs/first_line.py")
    return seconds(docker("--volume", f"{PROGRAMS}:/programs:ro", IMAGE, *program), docker_environment())


def import_torch() -> tuple[float, float, float]:
    """The first in a container, the next, and one without bytecode."""
    said = run(docker("--network", "none", IMAGE, "python3", "-c", IMPORTS), env=docker_environment(), timeout=120)
    found = re.search(r"imports (\S+) (\S+) (\S+)", said)
    assert found, said
    first, again, without = map(float, found.groups())
    return first, again, without


def docker(*arguments: str) -> Sequence[str]:
    return ["docker", "run", "--rm", "--env", "OMP_NUM_THREADS=1", *arguments]


def docker_environment() -> dict[str, str]:
    return environment(**{name: value for name, value in os.environ.items() if name.startswith("DOCKER_")})
