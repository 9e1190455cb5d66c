"""Disks that are full: named with the errno, nothing partial left, what was saved is whole, and room mends it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from moorage.checkpoint.inspect import State, inspect_folder
from ranks.chaos import DEADLINE, ChaosJob, dice, left_alone, rank_pids, reports
from support import JobFolder, make_room, small_disk

ENOSPC = "ENOSPC"


def check_checkpoints(folder: JobFolder) -> list[int]:
    """All that is there is whole; its steps."""
    found = inspect_folder(folder.checkpoints).checkpoints
    assert found and {checkpoint.state for checkpoint in found} == {State.WHOLE}, found
    assert not list(folder.checkpoints.rglob("*.sagemaker-ignore")), "something partial was left"
    return sorted(checkpoint.step for checkpoint in found)


def steps_named(pattern: str, log: str) -> set[int]:
    return {int(step) for step in re.findall(pattern, log)}


@pytest.mark.full(5, short=1)
def test_the_checkpoint_folder_is_full(tmp_path: Path, chaos_count: int) -> None:
    """Training goes on; a stop then keeps what there is."""
    die = dice("disk-checkpoints")
    alone = left_alone(strategy="ddp")
    for number in range(chaos_count):
        job = ChaosJob(tmp_path / str(number))
        [folder] = job.folders
        size = die.randrange(500, 1500)
        with small_disk(folder.checkpoints, f"{size}k"):
            with job.start(checkpoint_steps=3, keep=100) as hosts:
                [host] = hosts
                host.wait_for(ENOSPC, timeout=DEADLINE)
                assert job.await_step(job.peak() + 5, hosts), reports(hosts)
                host.signal()
                assert host.ends(DEADLINE) == 143, reports(hosts)
            case = f"{size} KB\n{host.report()}"
            assert host.failure is None, case
            kept = check_checkpoints(folder)
            assert set(kept) == steps_named(r"saved step (\d+):", host.stderr), case
            failed = steps_named(rf"step (\d+) was not saved: {ENOSPC} \(No space left on device\) in ", host.stderr)
            assert failed and not failed & set(kept), case
            assert re.search(rf"step \d+ is not saved: the save failed; the checkpoint of step {kept[-1]} is ", case)
            make_room(folder.checkpoints, "100m")
            job.finishes(checkpoint_steps=13)
            assert job.events("resume")[-1]["step"] == kept[-1], case
            job.check_equal(alone)
    print(f"{chaos_count} of {chaos_count} full checkpoint folders: named, none partial, went on with room, bit-equal")


@pytest.mark.full(5, short=1)
def test_the_model_folder_is_full(tmp_path: Path, chaos_count: int) -> None:
    """The job fails, and a start with room writes the model without training again."""
    die = dice("disk-model")
    alone = left_alone(strategy="ddp")
    for number in range(chaos_count):
        job = ChaosJob(tmp_path / str(number))
        [folder] = job.folders
        size = die.randrange(4, 36, 4)  # the weights alone have more
        with small_disk(folder.model, f"{size}k"):
            with job.start(checkpoint_steps=70) as hosts:
                [host] = hosts
                assert host.ends(DEADLINE) == 73, f"{size} KB\n{reports(hosts)}"
            assert host.failure is not None and ENOSPC in host.failure and str(folder.model) in host.failure
            assert not list(folder.model.iterdir()), f"{size} KB: something partial was left"
            assert check_checkpoints(folder)[-1] == job.steps
            trained = len(job.notes())
            make_room(folder.model, "100m")
            job.finishes()
            assert len(job.notes()) == trained
            job.check_equal(alone)
    print(f"{chaos_count} of {chaos_count} full model folders: named, none partial, went on with room, bit-equal")


@pytest.mark.full(5, short=1)
def test_the_output_folder_is_full(tmp_path: Path, chaos_count: int) -> None:
    """Neither the word of a failure nor that of a success fits; the exit code and the log say it all the same."""
    die = dice("disk-output")
    alone = left_alone(strategy="ddp")
    for number in range(chaos_count):
        job = ChaosJob(tmp_path / str(number))
        [folder] = job.folders
        output = folder.failure.parent
        with small_disk(output, "64k"):
            _fill(output / "of-the-program")
            with job.start(checkpoint_steps=3, max_restarts=0) as hosts:
                [host] = hosts
                assert job.await_step(die.randrange(5, 100), hosts), reports(hosts)
                os.kill(die.choice([*rank_pids(hosts).values()]), signal.SIGKILL)
                assert host.ends(DEADLINE) == 128 + signal.SIGKILL, reports(hosts)
            assert f"cannot write the failure file {folder.failure}: {ENOSPC}" in host.stderr, host.report()
            [host] = job.finishes()
            check_checkpoints(folder)
            assert f"cannot write {output / 'data' / 'goodput.json'}: {ENOSPC}" in host.stderr, host.report()
            left = [path.name for path in output.rglob("*") if path.is_file()]
            assert left == ["of-the-program"], f"something partial was left: {left}"
            job.check_equal(alone)
    print(f"{chaos_count} of {chaos_count} full output folders: named, none partial, bit-equal")


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
