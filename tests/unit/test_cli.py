"""The `moorage` command, started as users start it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def moorage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moorage.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_metrics_of_the_example() -> None:
    done = moorage("metrics", str(ROOT / "examples" / "digits" / "train.py"), "--json")
    assert done.returncode == 0, done.stderr
    assert [d["Name"] for d in json.loads(done.stdout)] == ["train_loss", "val_accuracy"]


def test_metrics_of_a_program_without_any_says_where_they_come_from(tmp_path: Path) -> None:
    program = tmp_path / "empty.py"
    program.write_text("pass\n")
    done = moorage("metrics", str(program))
    assert done.returncode == 66
    assert "run.report" in done.stderr
    program.write_text("def (\n")
    assert "empty.py is not Python" in moorage("metrics", str(program)).stderr


def test_settings_are_listed_with_their_meaning() -> None:
    done = moorage("settings")
    assert "moorage_<name>" in done.stdout
    assert "Seconds from SIGTERM" in done.stdout
    assert {entry["name"] for entry in json.loads(moorage("settings", "--json").stdout)} >= {"strategy", "grace"}


def test_the_command_loads_neither_torch_nor_boto3() -> None:
    code = "import sys, moorage.cli; print(*{'torch', 'boto3', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
