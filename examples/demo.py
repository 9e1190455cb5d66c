"""The main job on this machine: train digits on two ranks, interrupt it, start it again, compare with a run left alone.

Everything is real: `train` as the platform starts it, the folders it would find, SIGTERM as a Spot interruption or a
stop sends it. Run it by `make demo`; what it wrote stays in build/demo.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from layout import lay_out

HERE = Path(__file__).resolve().parent
STEP = re.compile(r"#metric step=(\d+)")
ACCURACY = re.compile(r"val_accuracy=([0-9.]+)")
EPOCHS, BATCH_SIZE, TRAINING_SAMPLES = 5, 32, 1437
STEPS = EPOCHS * (TRAINING_SAMPLES // BATCH_SIZE)
HYPERPARAMETERS = {
    "epochs": str(EPOCHS),
    "batch_size": str(BATCH_SIZE),
    "moorage_ranks_per_host": "2",
    "moorage_strategy": "ddp",
    "moorage_log_every": "10",
}
DEADLINE = 120.0


@dataclass
class Outcome:
    """One start of `train` on a job folder. Steps are counted from the beginning of the job."""

    code: int
    steps: list[int] = field(default_factory=list)
    accuracy: float | None = None
    seconds: float = 0.0


def train(job: Path, *, stop_at: int | None = None) -> Outcome:
    """Start `train` on `job`, print what it prints, and send it SIGTERM once it has passed step `stop_at`."""
    env = {**os.environ, "SAGEMAKER_BASE_DIR": str(job), "TRAINING_JOB_NAME": job.name}
    command = [sys.executable, str(HERE.parent / "train")]
    started = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    outcome, asked = Outcome(code=-1), False
    try:
        for line in process.stdout or ():
            print(f"  | {line}", end="", flush=True)
            if found := STEP.match(line):
                outcome.steps.append(int(found[1]))
            if found := ACCURACY.search(line):
                outcome.accuracy = float(found[1])
            if stop_at is not None and not asked and outcome.steps and outcome.steps[-1] >= stop_at:
                print(f"  > SIGTERM, as an interruption sends it, after step {outcome.steps[-1]}")
                process.send_signal(signal.SIGTERM)
                asked = True
        outcome.code = process.wait(timeout=DEADLINE)
    finally:
        if process.poll() is None:
            process.kill()
    outcome.seconds = time.monotonic() - started
    return outcome


def ledger(job: Path, event: str) -> list[dict[str, object]]:
    """The events of one kind that the job's attempts left beside its checkpoints, in order of time."""
    lines = [
        line for path in (job / "checkpoints" / "ledger").glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    events = [entry for line in lines if (entry := json.loads(line))["event"] == event]
    return sorted(events, key=lambda entry: entry["time"])


def same_weights(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same tensors, bit for bit."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def main() -> int:
    root = HERE.parent / "build" / "demo"
    alone, interrupted = root / "left-alone", root / "interrupted"
    for job in (alone, interrupted):
        if job.exists():
            shutil.rmtree(job)
        lay_out(job, HYPERPARAMETERS, interface="lo")

    print("1. A run left alone: two ranks, DDP")
    reference = train(alone)
    print("\n2. The same, interrupted")
    first = train(interrupted, stop_at=STEPS // 3)
    print("\n3. Started again, as the platform does: same job, new process, checkpoints in place")
    second = train(interrupted)
    codes = (reference.code, first.code, second.code)
    if codes != (0, 143, 0):
        print(f"\n  The exit codes are {codes}, and 0, 143, 0 was expected: the lines above say why.")
        return 1

    stops, resumes = ledger(interrupted, "stopped"), ledger(interrupted, "resume")
    lost = sum(int(stop["step"]) - int(resume["step"]) for stop, resume in zip(stops, resumes, strict=True))
    equal = same_weights(alone, interrupted)
    rows = [
        ("", "left alone", "interrupted"),
        ("attempts (exit codes)", f"1 ({reference.code})", f"2 ({first.code}, {second.code})"),
        ("steps", f"{reference.steps[-1]}", f"{second.steps[-1]}, stopped at {stops[0]['step']}"),
        ("lost steps", "0", str(lost)),
        ("validation accuracy", f"{reference.accuracy:.4f}", f"{second.accuracy or 0:.4f}"),
        ("seconds", f"{reference.seconds:.1f}", f"{first.seconds:.1f} + {second.seconds:.1f}"),
        ("final weights", "", "equal, bit for bit" if equal else "DIFFERENT"),
    ]
    print()
    for name, left, right in rows:
        print(f"  {name:<22} {left:<12} {right}")
    good = lost == 0 and equal
    print(f"\n  {'Nothing was lost.' if good else 'Something was lost: see above.'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
