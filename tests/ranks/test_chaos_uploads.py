"""A slow upload agent on each host, stopped at random points: what S3 holds then is enough to go on from."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.checkpoint.inspect import State, inspect_folder
from moorage.checkpoint.layout import steps
from ranks.chaos import DEADLINE, ChaosJob, dice, is_over, left_alone, reports
from support import wait_until

AGENT = Path(__file__).with_name("upload_agent.py")


class Agents:
    """One for each host, all with the same S3 prefix."""

    def __init__(self, folders: list[Path], s3: Path, die: random.Random) -> None:
        self._folders, self._s3, self._die = folders, s3, die
        self._running: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        self._running = [
            subprocess.Popen(
                [sys.executable, AGENT, folder, self._s3, "0.05", str(self._die.random())],
                stdout=subprocess.PIPE,
                text=True,
            )
            for folder in self._folders
        ]

    def signal(self, number: int) -> None:
        for agent in self._running:
            agent.send_signal(number)

    def kill(self) -> None:
        """With a word of what they met."""
        for agent in self._running:
            agent.kill()
            said, _ = agent.communicate(timeout=10)
            assert not said, said
        self._running = []


@contextlib.contextmanager
def uploading(job: ChaosJob, s3: Path, die: random.Random) -> Iterator[Agents]:
    s3.mkdir()
    agents = Agents([folder.checkpoints for folder in job.folders], s3, die)
    agents.start()
    try:
        yield agents
    finally:
        agents.kill()


def whole_steps(folder: Path) -> list[int]:
    """Newest first."""
    return [found.step for found in inspect_folder(folder).checkpoints if found.state is State.WHOLE]


@pytest.mark.full(30, short=5)
@pytest.mark.timeout(600)
def test_s3_has_a_whole_checkpoint_whenever_the_agent_stops(tmp_path: Path, chaos_count: int) -> None:
    die = dice("uploads")
    epochs = 5 if chaos_count < 10 else 20
    alone = left_alone(hosts=2, ranks=1, epochs=epochs)
    job = ChaosJob(tmp_path / "job", hosts=2, ranks=1, epochs=epochs, pause=0.06)
    s3 = tmp_path / "s3"
    newest, most = -1, 0
    with job.start(checkpoint_steps=3, keep=1) as hosts, uploading(job, s3, die) as agents:
        wait_until(lambda: whole_steps(s3) or is_over(hosts), timeout=DEADLINE, what="a checkpoint in S3")
        for number in range(chaos_count):
            time.sleep(die.uniform(0.1, 1.2))
            assert not is_over(hosts), f"the job was over after {number} stops:\n{reports(hosts)}"
            agents.signal(signal.SIGSTOP)
            held = whole_steps(s3)
            assert held, f"stop {number}: no whole checkpoint in S3, which had step {newest}"
            assert held[0] >= newest, f"stop {number}: S3 had step {newest}, and has {held}"
            newest = held[0]
            most = max(most, *(len(steps(folder.checkpoints)) for folder in job.folders))
            agents.signal(signal.SIGCONT)
            if die.random() < 0.5:
                agents.kill()
                agents.start()
        assert newest > 3, "the uploads never got on"
        agents.kill()
        for host in hosts:
            host.process.kill()
    # Both hosts are gone for good: new ones get what S3 holds.
    newest = whole_steps(s3)[0]
    for folder in job.folders:
        shutil.rmtree(folder.checkpoints)
        shutil.copytree(s3, folder.checkpoints)
    job.options["pause"] = 0.004
    job.finishes(checkpoint_steps=50)
    assert [event["step"] for event in job.events("resume")][-1] == newest
    job.check_equal(alone)
    print(f"{chaos_count} stops, at most {most} checkpoints on a host; went on from step {newest}")
