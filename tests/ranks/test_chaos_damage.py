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


def _swap(path: Path, die: random.Random) -> None:
    """For that of another step: whole in itself, often of the same size."""
    oldest = min(path.parent.parent.glob("step-*"))
    [other] = [found for found in oldest.iterdir() if found.name.endswith(_ending(path.name))]
    assert other.read_bytes() != path.read_bytes()
    shutil.copyfile(other, path)


Damage = Callable[[Path, random.Random], None]
DAMAGES: tuple[Damage, ...] = (_truncate, _zero, _flip_a_bit, _delete, _swap)
ENDINGS = (".metadata", "-00000.distcp", "-00001.distcp", "manifest.json")
"""What a checkpoint of two ranks is made of, by the ends of the names: each attempt names its files anew."""
CASES = tuple(itertools.product(ENDINGS, DAMAGES))
EVERY = 3
"""Steps between the checkpoints."""


def _ending(name: str) -> str:
    return next(ending for ending in ENDINGS if name.endswith(ending))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> ChaosJob:
    """A job that was stopped twice, with all its checkpoints: enough for all cases after the first stop, and some from
    before it, since the metadata of one attempt are the same at each step.
    """
    job = ChaosJob(tmp_path_factory.mktemp("stopped"))
    die = dice("damage-stop")
    for moment in (range(5, 15), range(90, 130)):
        with job.start(checkpoint_steps=EVERY, keep=100) as hosts:
            assert await_random_moment(job, hosts, die, steps=moment), reports(hosts)
            hosts[0].signal()
            assert hosts[0].ends(DEADLINE) == 143, reports(hosts)
    first, _ = job.events("stopped")
    found = checkpoints(job)
    assert len([path for path in found if int(path.name[5:]) > first["step"]]) > len(CASES)
    for path in found:
        assert sorted(_ending(file.name) for file in path.iterdir()) == sorted(ENDINGS)
    return job


def checkpoints(job: ChaosJob) -> list[Path]:
    """Newest first."""
    return sorted(job.folders[0].checkpoints.glob("step-*"), reverse=True)


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


@pytest.mark.full(20, short=1)
def test_one_damaged_file_of_the_newest(tmp_path: Path, stopped: ChaosJob, chaos_count: int) -> None:
    die = dice("damage")
    alone = left_alone(strategy="ddp")
    newest, previous, *_ = checkpoints(stopped)
    for number, (ending, how) in enumerate(die.sample(CASES, chaos_count)):
        job = started_again(stopped, tmp_path / str(number))
        damage(job.folders[0].checkpoints / newest.name, ending, how, die)
        [host] = job.finishes()
        case = f"{how.__name__} {ending}\n{host.report()}"
        assert noticed(host, newest, ending), case
        assert job.events("resume")[-1]["step"] == int(previous.name[5:]), case
        job.check_equal(alone)
    print(f"{chaos_count} of {chaos_count} damaged checkpoints: noticed, the one before used, bit-equal")


@pytest.mark.full(80, short=20)
def test_all_damages_of_all_files_at_once(tmp_path: Path, stopped: ChaosJob, chaos_count: int) -> None:
    """As many checkpoints as cases, each damaged in its own way: one start falls back over all of them."""
    die = dice("damage-all")
    for number in range(chaos_count // len(CASES)):
        job = started_again(stopped, tmp_path / str(number))
        found = checkpoints(job)
        damaged = list(zip(found, die.sample(CASES, len(CASES)), strict=False))
        for checkpoint, (ending, how) in damaged:
            damage(checkpoint, ending, how, die)
        [host] = job.finishes()
        for checkpoint, (ending, how) in damaged:
            assert noticed(host, checkpoint, ending), f"{how.__name__} {ending}\n{host.report()}"
        assert job.events("resume")[-1]["step"] == int(found[len(CASES)].name[5:])
        job.check_equal(left_alone(strategy="ddp"))
    print(f"{chaos_count} of {chaos_count} damaged checkpoints, {len(CASES)} at once: noticed, passed over, bit-equal")
