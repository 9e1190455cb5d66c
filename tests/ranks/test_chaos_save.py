"""SIGKILL at exact points of a save: there is always a checkpoint to go on from, and it is the right one."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from ranks.chaos import DEADLINE, ChaosJob, dice, left_alone, reports
from ranks.moments import MANIFEST, SHARD

PREVIOUS, NEW, EITHER = "previous", "new", "either"
EVERY = 5
"""Steps between the checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Of a save, as moments.Death has it. loads: the checkpoint that the next attempt goes on from: the one before, or
    the one that was being saved; either, where that hangs on whether another host came to commit it."""

    call: str
    loads: str
    file: str = ""
    when: str = "before"
    nth: int = 1
    behind: bool = False


POINTS = {
    "the weights are being copied": Point(call="memmove", nth=3, loads=PREVIOUS),
    "the shard is empty": Point(call="open", file=SHARD, when="after", loads=PREVIOUS),
    "the shard is half written": Point(call="write", file=SHARD, when="half", loads=PREVIOUS),
    "the shard is not on the disk": Point(call="fsync", file=SHARD, loads=PREVIOUS),
    "the shard has not got its name": Point(call="rename", file=SHARD, loads=PREVIOUS),
    "the shard has its name": Point(call="rename", file=SHARD, when="after", loads=PREVIOUS),
    "the metadata has not got its name": Point(call="rename", file=".metadata.sagemaker-ignore", loads=PREVIOUS),
    "the manifest is half written": Point(call="write", file=MANIFEST, when="half", loads=EITHER),
    "the manifest is on the other host only": Point(call="rename", file=MANIFEST, behind=True, loads=NEW),
    # Removing a checkpoint begins with its manifest.
    "the old checkpoint is half removed": Point(call="unlink", file="/manifest.json", when="after", loads=NEW),
}


@pytest.mark.full(50, short=5)
def test_killed_at_each_point_of_a_save(tmp_path: Path, chaos_count: int) -> None:
    die = dice("kill-save")
    alone = left_alone(strategy="ddp")  # its two ranks are on one host: where they are changes no bit
    whole_hosts = 0
    points = min(chaos_count, len(POINTS))
    for number in range(chaos_count // points):
        job = ChaosJob(tmp_path / str(number), hosts=2, ranks=1)
        whole_hosts += _kill_at(job, die, die.sample(sorted(POINTS), points))
        job.check_equal(alone)
    print(f"{chaos_count} of {chaos_count} SIGKILLs at {points} points of a save: the right checkpoint, bit-equal")
    print(f"  {whole_hosts} of them of a whole host, the others of a rank")


def _kill_at(job: ChaosJob, die: random.Random, names: list[str]) -> int:
    """One job to its end, killed once at each of these points; how many of the kills were of a whole host."""
    kills = [
        {"rank": die.randrange(2), "host": die.random() < 0.2}
        | {key: value for key, value in dataclasses.asdict(POINTS[name]).items() if key != "loads"}
        for name in names
    ]
    (job.base / "kills.json").write_text(json.dumps(kills), encoding="utf-8")
    hosts_killed = [kill["rank"] for kill in kills if kill["host"]]
    for victim in hosts_killed:
        with job.start(checkpoint_steps=EVERY, keep=1, max_restarts=len(kills)) as hosts:
            assert hosts[victim].ends(DEADLINE) == -signal.SIGKILL, reports(hosts)
            assert hosts[1 - victim].ends(DEADLINE) not in (0, 143), reports(hosts)
    hosts = job.finishes(checkpoint_steps=EVERY, keep=1, max_restarts=len(kills))
    _check_resumes(job, names, reports(hosts))
    strays = [path for folder in job.folders for path in folder.checkpoints.rglob("*.sagemaker-ignore")]
    assert not strays, "something half written was left"
    return len(hosts_killed)


def _check_resumes(job: ChaosJob, names: list[str], log: str) -> None:
    lines = (job.base / "killed.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(names), f"{len(lines)} kills\n{log}"
    resumed = [[event["step"] for event in job.events("resume", host=host)] for host in range(2)]
    assert resumed[0] == resumed[1] and len(resumed[0]) == len(names), f"{resumed}\n{log}"
    for name, line, step in zip(names, map(json.loads, lines), resumed[0], strict=True):
        point, previous = POINTS[name], line["committed"]
        # Where it is pruning, the new one was committed before.
        new = previous if point.call == "unlink" else previous + EVERY
        allowed = {PREVIOUS: {previous}, NEW: {new}, EITHER: {previous, new}}[point.loads]
        assert step in allowed, f"killed when {name}: went on from step {step} instead of {allowed}\n{log}"
        assert bool(line["others"]) == point.behind
