"""`moorage tune --local`: real trials, the bad ones stopped early, and a study that outlives whoever runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from support import wait_until

PROGRAM = """
import sys, time
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
lr, epochs = float(given["--lr"]), int(given["--epochs"])
for epoch in range(epochs):
    time.sleep(0.1)
    print(f"#metric step={10 * (epoch + 1)} epoch={epoch} val={1 - abs(lr - 0.5) - 0.3 / (epoch + 1):.6f}", flush=True)
"""
TUNE = (
    "train.py", "--objective", "max:val", "--range", "lr=0.0:1.0", "-p", "epochs=9", "--strategy", "hyperband",
    "--metric", "val=#metric .* val=([0-9.-]+)",
    "--tune-seed", "1", "--trials", "8", "--parallel", "2",
)  # fmt: skip


def moorage(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "moorage.cli", "tune", "--local", *arguments], cwd=folder, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def test_a_study_is_killed_goes_on_and_finds_the_best(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    process = moorage(tmp_path, *TUNE)
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if "3 of 8 are over" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "3 of 8 are over" in told, told
    (study,) = (tmp_path / "runs").iterdir()

    again = moorage(tmp_path, "--resume", str(study), "--json")
    stdout, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    found = json.loads(stdout)
    assert len(found["trials"]) == 8
    assert 0 < found["steps"] < found["steps_to_the_end"] == 8 * 90
    assert any("is stopped after" in line for line in (told + stderr).splitlines())
    best = max(found["trials"], key=lambda trial: trial["best"] or -9)
    assert found["best"]["number"] == best["number"]
    assert abs(float(best["hyperparameters"]["lr"]) - 0.5) < 0.3
    wait_until(lambda: not running(tmp_path), what="the end of what the killed one had started")


def running(folder: Path) -> list[str]:
    """Processes that belong to trials below `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_what_the_platform_would_refuse_is_refused_before_any_trial(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    process = moorage(tmp_path, "train.py", "--objective", "max:accuracy", "--range", "lr=0.0:1.0")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 78
    assert "the objective accuracy has no metric definition" in stderr and not (tmp_path / "runs").exists()
