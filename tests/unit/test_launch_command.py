"""The file `train` itself."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from support import TRAIN, JobFolder


def run(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **(env or {})}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=env, cwd=cwd)


def test_help_teaches_without_a_job() -> None:
    done = run(str(TRAIN), "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("PROGRAM", "SAGEMAKER_BASE_DIR", "resourceconfig.json", "143"))


def test_it_needs_no_installation() -> None:
    # -S leaves out the .pth files of site-packages, by which moorage is installed here; its dependencies stay.
    env = {"PYTHONPATH": sysconfig.get_path("purelib")}
    assert run("-S", "-c", "import moorage", env=env).returncode != 0
    assert run("-S", str(TRAIN), "--help", env=env).returncode == 0


def test_the_folder_of_the_job_may_be_given_relative_to_the_current_one(tmp_path: Path) -> None:
    program = "import os, pathlib; print('at', os.path.samefile(os.environ['SAGEMAKER_BASE_DIR'], pathlib.Path('..')))"
    JobFolder(tmp_path / "job").code(train=program)
    done = run(str(TRAIN), env={"SAGEMAKER_BASE_DIR": "job"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "at True\n"


def test_it_is_executable() -> None:
    assert os.access(TRAIN, os.X_OK)
    assert TRAIN.read_text().startswith("#!/usr/bin/env python3\n")


def test_the_supervisor_loads_neither_torch_nor_what_only_preparing_needs() -> None:
    heavy = ("torch", "numpy", "boto3", "sagemaker_training", "asyncio", "argparse")
    code = f"import sys, moorage.launch.main; print([name for name in {heavy} if name in sys.modules])"
    assert run("-c", code).stdout == "[]\n"
