"""Hosts whose clocks are an hour apart: which checkpoint is newer is told by its step, never by a clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from moorage.checkpoint.inspect import inspect_folder
from ranks.chaos import DEADLINE, ChaosJob, await_random_moment, dice, left_alone, reports

HOUR = 3600

TURNS = ((0, HOUR), (1, HOUR), (1, -HOUR))
"""Which of two hosts has another clock, and by how many seconds. The first one makes the manifests."""

KEEP = 10
"""Checkpoints that stay: some from before the clock was put right, and some from after."""


@pytest.fixture(scope="module")
def other_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that gives the process it is loaded into the time of day plus CLOCK_SHIFT seconds."""
    cc = shutil.which("cc")
    assert cc, "a C compiler is needed, as for `make` itself"
    library = tmp_path_factory.mktemp("clock") / "other_clock.so"
    source = Path(__file__).with_name("other_clock.c")
    subprocess.run([cc, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.full(3, short=1)
def test_another_clock_on_a_host(tmp_path: Path, other_clock: Path, chaos_count: int) -> None:
    """It is stopped; then that clock is put right, and the files get times that say the contrary of their steps."""
    die = dice("clock")
    alone = left_alone(strategy="ddp")  # its two ranks are on one host: where they are changes no bit
    for number, (place, shift) in enumerate(die.sample(TURNS, chaos_count)):
        job = ChaosJob(tmp_path / str(number), hosts=2, ranks=1)
        env = {"LD_PRELOAD": str(other_clock), "CLOCK_SHIFT": str(shift)}
        with job.start(checkpoint_steps=7, keep=KEEP, host_env={job.folders[place].host: env}) as hosts:
            assert await_random_moment(job, hosts, die, steps=range(40, 60), since=0.0), reports(hosts)
            die.choice(hosts).signal()
            assert [host.ends(DEADLINE) for host in hosts] == [143, 143], reports(hosts)
        started = [job.events("start", host=host)[0]["time"] for host in range(2)]
        assert started[place] - started[1 - place] == pytest.approx(shift, abs=60)
        _age(job)
        job.finishes(checkpoint_steps=20, keep=KEEP)
        job.check_nothing_lost()
        job.check_equal(alone)
        saved = sorted(event["step"] for event in job.events("save"))
        for folder in job.folders:
            found = inspect_folder(folder.checkpoints).checkpoints
            assert [checkpoint.step for checkpoint in found] == saved[: -KEEP - 1 : -1]
            if (place, shift) == (0, HOUR):
                assert found[0].manifest.created < found[-1].manifest.created, "the clock is not that of the manifests"
    print(f"{chaos_count} of {chaos_count} clocks an hour off: the right checkpoints chosen and kept, bit-equal")


def _age(job: ChaosJob) -> None:
    """The later the step, the older its files, by years."""
    for folder in job.folders:
        for years, path in enumerate(sorted(folder.checkpoints.glob("step-*"))):
            then = time.time() - years * 365 * 24 * HOUR
            for file in (*path.iterdir(), path):
                os.utime(file, (then, then))
