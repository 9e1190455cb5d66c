"""`moorage.start()` in a program that nobody launched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import JobFolder


@pytest.mark.parametrize("hosts", [("algo-1",), ("algo-1", "algo-2")])
def test_hosts_that_train_each_for_itself_are_told(hosts: tuple[str, ...], tmp_path: Path) -> None:
    """As SDK v3's own driver starts an entry_script on two instances."""
    folder = JobFolder(tmp_path, hosts=hosts)
    done = subprocess.run(
        [sys.executable, "-c", "import moorage; print(moorage.start().world_size)"],
        env={**os.environ, **folder.env}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "1"
    assert ("the job has 2 hosts and nothing joined them" in done.stderr) == (len(hosts) > 1), done.stderr
