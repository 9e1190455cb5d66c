"""The packages know each other in one direction, and PID 1 never meets torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import arrows

PID_1 = "moorage.launch.main"


def tree(home: Path, files: dict[str, str]) -> list[str]:
    for name, source in files.items():
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return [line.removeprefix(f"{home}/") for line in arrows.complaints(home)]


def test_the_toolkit_keeps_its_arrows() -> None:
    assert list(arrows.complaints()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "contract/paths.py",
            "import os\nfrom moorage.errors import ConfigError\nimport moorage.contract.values",
        ),
        ("launch/plan.py", "from ..cluster.host import Host\nfrom moorage import __version__"),
        ("launch/program.py", "def install():\n    import boto3"),
        ("training/run.py", "import torch\nfrom moorage.checkpoint import save\nfrom moorage.contract import config"),
        ("contract/fingerprint.py", "import xxhash"),
        ("cli.py", "from moorage.contract import settings"),
        ("cli/app.py", "import typer\nfrom moorage.cli import terminal"),
        ("cli.py", "def metrics():\n    from moorage.training import metrics"),
        (
            "__init__.py",
            "if typing.TYPE_CHECKING:\n    from moorage.training.run import Run",
        ),
    ],
)
def test_allowed(tmp_path: Path, file: str, source: str) -> None:
    assert tree(tmp_path, {file: source}) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("contract/a.py", "import moorage.cluster.host", "contract imports moorage.cluster.host"),
        ("contract/a.py", "def f():\n    from moorage import launch", "contract imports moorage.launch"),
        ("cluster/a.py", "from ..launch import plan", "cluster imports moorage.launch"),
        ("cluster/deep/a.py", "from ...launch import plan", "cluster imports moorage.launch"),
        ("launch/a.py", "def f():\n    import torch.distributed", "PID 1 is free of torch"),
        ("launch/a.py", "import boto3", "slows PID 1"),
        ("launch/a.py", "from moorage.training.run import Run", "launch imports moorage.training.run"),
        ("checkpoint/a.py", "from moorage.training import run", "checkpoint imports moorage.training"),
        ("serving/a.py", "from moorage.launch import ranks", "serving may use cluster, contract, errors"),
        ("cli.py", "from moorage.training import metrics", "import it in a function"),
        ("cli/app.py", "import rich", "do it in the function"),
        ("launch/a.py", "import typer", "slows PID 1"),
        ("__init__.py", "import torch", "do it in the function"),
        ("extra/a.py", "", "extra is not a part"),
    ],
)
def test_refused(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    lines = tree(tmp_path, {file: source})
    assert len(lines) == 1
    assert lines[0].startswith(f"{file}:")
    assert complaint in lines[0]


def test_the_command_goes_red(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert arrows.main([]) == 0
    tree(tmp_path, {"contract/a.py": "import torch"})
    assert arrows.main([str(tmp_path)]) == 1
    assert "contract imports torch" in capsys.readouterr().err


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["moorage", PID_1])
def test_what_pid_1_loads(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert module in loaded
    assert loaded.isdisjoint({"torch", "numpy", "accelerate", "boto3", "sagemaker_training", "moorage.training"})
