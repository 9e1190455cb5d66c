"""An environment for each client, made once: the SageMaker SDKs of two generations cannot share one."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

FOLDER = ROOT / "build" / "clients"


def environment(name: str) -> Path:
    """The interpreter of the client `name`, v2 or v3, installed from requirements/client-<name>.txt.

    It is kept, and made anew when that file changes. Fails with pip's own words when it cannot be installed.
    """
    requirements = ROOT / "requirements" / f"client-{name}.txt"
    venv = FOLDER / name
    python, stamp = venv / "bin" / "python", venv / ".installed"
    version = f"{hashlib.sha256(requirements.read_bytes()).hexdigest()} {sys.version}"
    if python.exists() and stamp.exists() and stamp.read_text() == version:
        return python
    shutil.rmtree(venv, ignore_errors=True)
    _run(sys.executable, "-m", "venv", venv)
    # The file names every package. What is never imported needs no bytecode: it takes half the time.
    _run(
        python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile", "--no-deps",
        "-r", requirements,
    )  # fmt: skip
    stamp.write_text(version)
    return python


def require_compose() -> None:
    """Local mode starts its containers by docker compose. In CI it must be there; elsewhere the test is left out."""
    if shutil.which("docker-compose") or _plugin():
        return
    reason = "local mode of the SageMaker SDK needs docker compose: apt-get install docker-compose"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _plugin() -> bool:
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
