"""Checkpoints damaged between a stop and the next start: noticed each time, and the one before is used."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ranks.chaos import DEADLINE, ChaosJob, await_random_moment, dice, left_alone, reports
from support import HostProcess


def _truncate(path: Path, die: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: die.randrange(len(data))])


def _zero(path: Path, die: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flip_a_bit(path: Path, die: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[die.randrange(len(data))] ^= 1 << die.randrange(8)
    path.write_bytes(data)


def _delete(path: Path, die: random.Random) -> None:
    path.unlink()


Damage = Callable[[Path, random.Random], None]
DAMAGES: tuple[Damage, ...] = (_truncate, _zero, _flip_a_bit, _delete)
EVERY = 3
"""Steps between the checkpoints."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> ChaosJob:
    """A job that was stopped, with the checkpoints of 20 moments."""
    job = ChaosJob(tmp_path_factory.mktemp("stopped"))
    die = dice("damage-stop")
    with job.start(checkpoint_steps=EVERY, keep=20) as hosts:
        assert await_random_moment(job, hosts, die, steps=range(90, 130)), reports(hosts)
        hosts[0].signal()
        assert hosts[0].ends(DEADLINE) == 143, reports(hosts)
    assert len(checkpoints(job)) == 20
    return job


def checkpoints(job: ChaosJob) -> list[Path]:
    """Newest first."""
    return sorted(job.folders[0].checkpoints.glob("step-*"), reverse=True)


def files(checkpoint: Path) -> list[str]:
    """What a checkpoint of two ranks is made of, by the ends of the names: each save names its files anew."""
    names = sorted(path.name for path in checkpoint.iterdir())
    assert len(names) == 4 and names[0] == ".metadata" and names[3] == "manifest.json", names
    return [".metadata", "-00000.distcp", "-00001.distcp", "manifest.json"]


def damage(checkpoint: Path, ending: str, how: Damage, die: random.Random) -> None:
    [path] = [path for path in checkpoint.iterdir() if path.name.endswith(ending)]
    how(path, die)


def started_again(stopped: ChaosJob, base: Path) -> ChaosJob:
    """A job that goes on from a copy of what the stopped one left."""
    shutil.copytree(stopped.base, base)
    return ChaosJob(base)


def noticed(host: HostProcess, checkpoint: Path, ending: str) -> bool:
    """Whether the log gives a reason for not using this checkpoint."""
    word = "manifest" if ending == "manifest.json" else ending
    return any(checkpoint.name in line and word in line for line in host.stderr.splitlines())


@pytest.mark.full(16, short=1)
def test_one_damaged_file_of_the_newest(tmp_path: Path, stopped: ChaosJob, chaos_count: int) -> None:
    die = dice("damage")
    alone = left_alone(strategy="ddp")
    newest, previous, *_ = checkpoints(stopped)
    cases = list(itertools.product(files(newest), DAMAGES))
    assert len(cases) == 16
    for number, (ending, how) in enumerate(die.sample(cases, chaos_count)):
        job = started_again(stopped, tmp_path / str(number))
        damage(job.folders[0].checkpoints / newest.name, ending, how, die)
        [host] = job.finishes()
        case = f"{how.__name__} {ending}\n{host.report()}"
        assert noticed(host, newest, ending), case
        assert [event["step"] for event in job.events("resume")] == [int(previous.name[5:])], case
        job.check_equal(alone)
    print(f"{chaos_count} of {chaos_count} damaged checkpoints: noticed, the one before used, bit-equal")


def test_all_damages_of_all_files_at_once(tmp_path: Path, stopped: ChaosJob) -> None:
    """16 checkpoints, each damaged in its own way: one start falls back over all of them."""
    die = dice("damage-all")
    job = started_again(stopped, tmp_path / "job")
    found = checkpoints(job)
    cases = list(itertools.product(files(found[0]), DAMAGES))
    for checkpoint, (ending, how) in zip(found, cases, strict=False):
        damage(checkpoint, ending, how, die)
    [host] = job.finishes()
    for checkpoint, (ending, how) in zip(found, cases, strict=False):
        assert noticed(host, checkpoint, ending), f"{how.__name__} {ending}\n{host.report()}"
    assert [event["step"] for event in job.events("resume")] == [int(found[len(cases)].name[5:])]
    job.check_equal(left_alone(strategy="ddp"))
