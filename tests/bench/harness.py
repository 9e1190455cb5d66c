"""What the benchmarks share: rows, taking turns, processes under a deadline, the table and the JSON."""

from __future__ import annotations

import json
import operator
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"
OUT = ROOT / "build" / "bench"

COMPARE: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}


class PeerFailed(Exception):
    """A measured command did not end well; the message holds the end of what it printed."""


class Absent(Exception):
    """What is measured is not on this machine; the message says how it gets there."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison, as it stands in the JSON."""

    name: str
    value: float
    unit: str
    against: str
    ratio: float
    """Ours to theirs: the median over rounds of the ratio within a round, so that a slow minute touches both."""
    target: str
    """Such as `<= 0.6`; empty where none was set."""
    holds: bool | None


def compare(
    name: str, unit: str, ours: Sequence[float], theirs: Sequence[float], *, against: str, target: str = ""
) -> Row:
    """A row from the values of the same rounds. Raises ValueError when the rounds differ in number."""
    ratio = median(our / their for our, their in zip(ours, theirs, strict=True))
    holds = None
    if target:
        sign, limit = target.split()
        holds = COMPARE[sign](ratio, float(limit))
    return Row(name=name, value=median(ours), unit=unit, against=against, ratio=ratio, target=target, holds=holds)


def take_turns(contenders: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Every contender once a round, after one round that only warms caches."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            value = measure()
            print(
                f"  {'warm-up' if number == 0 else f'round {number}'} {name}: {value:.4g}", file=sys.stderr, flush=True
            )
            if number:
                values[name].append(value)
    return values


def environment(**extra: str) -> dict[str, str]:
    """The least a program needs, the same for every contender, and nothing of the shell this was started from."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **extra,
    }


def run(command: Sequence[str | Path], *, env: Mapping[str, str], timeout: float, cwd: Path | None = None) -> str:
    """What `command` printed, both streams. Raises PeerFailed when it fails or is not done in `timeout` seconds."""
    process = subprocess.Popen(
        [str(part) for part in command],
        env=dict(env),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise PeerFailed(f"{command[0]} was not done after {timeout} s:\n{output[-2000:]}") from None
    if process.returncode:
        raise PeerFailed(f"{command[0]} exited {process.returncode}:\n{output[-4000:]}")
    return output


def job_folder(folder: Path, program: Path, hyperparameters: Mapping[str, str]) -> Path:
    """A folder as the platform mounts it at /opt/ml, with one host and one program."""
    config = folder / "input" / "config"
    config.mkdir(parents=True)
    (folder / "model").mkdir()
    source = folder / "source"
    source.mkdir()
    (source / program.name).write_text(program.read_text())
    files = {
        "resourceconfig.json": {
            "current_host": "localhost",
            "hosts": ["localhost"],
            "network_interface_name": "lo",
            "current_instance_type": "local",
            "current_group_name": "homogeneousCluster",
            "instance_groups": [
                {"instance_group_name": "homogeneousCluster", "instance_type": "local", "hosts": ["localhost"]}
            ],
        },
        "inputdataconfig.json": {},
        "checkpointconfig.json": {"LocalPath": str(folder / "checkpoints")},
        "hyperparameters.json": {
            "sagemaker_program": program.name,
            "sagemaker_submit_directory": str(source),
            **hyperparameters,
        },
    }
    for name, content in files.items():
        (config / name).write_text(json.dumps(content))
    return folder


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a missed target shown as missed."""
    verdicts = {True: "holds", False: "MISSED", None: ""}
    cells = [("what", "ours", "against", "ratio", "target", "")]
    cells += [
        (r.name, f"{r.value:.4g} {r.unit}", r.against, f"{r.ratio:.3f}", r.target, verdicts[r.holds]) for r in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths[:-1]), *lines[1:]])


def write(name: str, rows: Sequence[Row]) -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / f"{name}.json"
    file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return file
