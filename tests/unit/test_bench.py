"""The benchmarks' own arithmetic, turns and deadlines; what they measure is not a test's business."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from bench import harness, many_ranks, pause, restore
from bench.turns import Conductor

RANK = f"""
import os, sys
sys.path.insert(0, {str(harness.PROGRAMS)!r})
from turns_client import Turns
turns = Turns(int(sys.argv[1]))
while turns.wait():
    with open(sys.argv[2], "a") as order:
        order.write(os.environ["BENCH_NAME"] + " ")
    turns.report(float(sys.argv[3]), 10.0)
"""


def test_the_ratio_is_taken_within_rounds() -> None:
    row = harness.compare("pause", "s", [1.0, 10.0, 3.0], [2.0, 20.0, 3.0], against="torch.save", target="<= 0.6")
    assert (row.value, row.ratio, row.holds) == (3.0, 0.5, True)


@pytest.mark.parametrize(
    ("ours", "target", "holds"),
    [(0.6, "<= 0.6", True), (0.61, "<= 0.6", False), (0.97, ">= 0.97", True), (1.0, "> 1", False), (5.0, "", None)],
)
def test_targets(ours: float, target: str, holds: bool | None) -> None:
    assert harness.compare("x", "s", [ours], [1.0], against="y", target=target).holds is holds


def test_a_missed_target_is_shown_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "OUT", tmp_path)
    row = harness.compare("start", "s", [0.9], [1.0], against="torchrun", target="<= 0.6")
    assert "MISSED" in harness.table([row])
    (written,) = json.loads(harness.write("start", [row]).read_text())
    assert written == {
        "name": "start", "value": 0.9, "unit": "s", "against": "torchrun", "ratio": 0.9, "target": "<= 0.6",
        "holds": False,
    }  # fmt: skip


def test_what_a_checkpoint_costs_the_loop() -> None:
    turns = {
        "moorage": [(0.1, 0.4, 2.0), (0.2, 0.6, 1.25), (0.1, 0.4, 2.0)],
        "memory-copy": [(0.2, 0.2, 1.0), (0.2, 0.2, 1.0), (0.2, 0.2, 1.0)],
        "dcp.async_save": [(0.2, 0.5, 4.0), (0.8, 0.5, 2.5), (0.2, 0.5, 4.0)],
    }
    found = {(row.name, row.against): row for row in pause.compared(turns, size="1 GB")}
    assert {place: (row.value, row.ratio, row.holds) for place, row in found.items()} == {
        ("pause, 1 GB", "memory-copy"): (0.1, 0.5, True),
        ("pause, 1 GB", "dcp.async_save"): (0.1, 0.5, False),
        ("added, 1 GB", "dcp.async_save"): (0.4, 0.8, True),
        ("pace, 1 GB", "dcp.async_save"): (0.5, 2.0, None),
    }


def test_a_restore_takes_as_long_as_its_slower_rank(tmp_path: Path) -> None:
    (tmp_path / "0.distcp").write_bytes(b"state")
    said = "restored in 0.25\n[localhost:1] restored in 0.5\n"
    assert [restore.restored(lambda: said, tmp_path, cache) for cache in restore.CACHES] == [0.5, 0.5]
    with pytest.raises(AssertionError, match=r"^started from zero"):
        restore.restored(lambda: "started from zero", tmp_path, "cold")


@pytest.mark.parametrize(("seconds", "holds"), [(5.0, True), (5.5, False)])
def test_a_limit_is_a_ratio_of_one(seconds: float, holds: bool) -> None:
    row = many_ranks.limited("4,096 ranks", "s", [seconds], 5.0)
    assert (row.against, row.ratio, row.holds) == ("5 s", seconds / 5, holds)


def test_contenders_alternate_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def contender(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    values = harness.take_turns({"a": lambda: contender("a"), "b": lambda: contender("b")}, rounds=2)
    assert "".join(calls) == "ababab"
    assert values == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_command_over_its_time_is_ended_with_its_children() -> None:
    with pytest.raises(harness.PeerFailed, match=r"not done after 1 s") as failure:
        harness.run(["sh", "-c", "sleep 60 & echo $!; wait"], env=harness.environment(), timeout=1)
    child = int(str(failure.value).splitlines()[1])
    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline, "the child outlived its command"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_failure_shows_what_the_command_said() -> None:
    with pytest.raises(harness.PeerFailed, match=r"exited 3:\nno such thing"):
        harness.run(["sh", "-c", "echo no such thing; exit 3"], env=harness.environment(), timeout=10)


def start(conductor: Conductor, name: str, order: Path, *, seconds: tuple[float, float]) -> None:
    program = order.with_name("rank.py")
    program.write_text(RANK)
    ranks = " & ".join(f"{sys.executable} {program} {rank} {order} {seconds[rank]}" for rank in range(2))
    conductor.start(name, ["bash", "-c", f"{ranks} & wait"])


def test_turns_go_round_and_the_slowest_rank_counts(tmp_path: Path) -> None:
    order = tmp_path / "order"
    with Conductor(tmp_path) as conductor:
        start(conductor, "a", order, seconds=(1.0, 2.0))
        start(conductor, "b", order, seconds=(4.0, 3.0))
        conductor.wait_until_ready(timeout=30)
        values = conductor.rounds(2, timeout=10)
    assert values == {"a": [(2.0, 10.0)] * 2, "b": [(4.0, 10.0)] * 2}
    turns = order.read_text().split()
    assert [sorted(turns[i : i + 4]) for i in range(0, len(turns), 4)] == [["a", "a", "b", "b"]] * 3
    assert turns[::2] == turns[1::2], "both ranks of one, then both of another"
    assert all(contender.process.returncode == 0 for contender in conductor.contenders.values())


def test_a_contender_that_dies_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Conductor(tmp_path) as conductor:
        start(conductor, "a", tmp_path / "order", seconds=(1.0, 2.0))
        conductor.start("b", ["sh", "-c", "echo no module; exit 4"])
        with pytest.raises(harness.PeerFailed, match=r"b exited 4 before its turn:\nno module"):
            conductor.wait_until_ready(timeout=30)
