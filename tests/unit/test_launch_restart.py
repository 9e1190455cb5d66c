"""Failures at the same step are counted over the starts of a job, from what their ledgers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moorage.contract.failure import Failure
from moorage.contract.ledger import Ledger, next_launch, read_ledger
from moorage.launch.restart import Repeat, Streak, decide


def attempt(folder: Path, name: str, *, launch: int, number: int = 0, host: str = "a", **steps: int) -> None:
    """The ledger of an attempt on one host. steps: of the event down, and of attempt_failed where it failed."""
    ledger = Ledger.open(folder, host, name)
    ledger.write("start", launch=launch, attempt=number, host=host)
    ledger.write("down", attempt=number, codes=[1], step=steps.get("down"))
    if "failed" in steps:
        ledger.write("attempt-failed", attempt=number, step=steps["failed"])
    ledger.close()


def test_earlier_starts_count_by_their_numbers_whatever_the_clocks_say(tmp_path: Path) -> None:
    attempt(tmp_path, "c", launch=1, down=200, failed=200)
    # The names sort by the time of clocks that are apart: the last start has the earliest.
    attempt(tmp_path, "b", launch=2, down=200, failed=200)
    attempt(tmp_path, "b", launch=2, host="b", down=199, failed=200)
    attempt(tmp_path, "a", launch=3, down=150)
    records = read_ledger(tmp_path)
    assert [record.key for record in records] == [(1, 0), (2, 0), (2, 0), (3, 0)]
    assert next_launch(records) == 4
    streak = Streak.of(records)
    repeat = streak.fail(200)
    assert repeat == Repeat(done=200, times=3, earlier=2)
    assert repeat.describe() == (
        "step 201 failed in 3 attempts, 2 of them in earlier starts of the job, so it would fail again"
    )
    cause = Failure(host="a", rank=0, code=1, message="E")
    assert not decide(cause, made=0, most=3, progressed=True, again=repeat).again


def test_a_step_further_wipes_the_slate(tmp_path: Path) -> None:
    attempt(tmp_path, "a", launch=1, down=200, failed=200)
    attempt(tmp_path, "b", launch=2, down=200, failed=200)
    attempt(tmp_path, "c", launch=3, down=201)  # stopped, say, while one rank was a step ahead
    assert Streak.of(read_ledger(tmp_path)).fail(200).times == 3
    attempt(tmp_path, "d", launch=4, down=202)
    assert Streak.of(read_ledger(tmp_path)).fail(200).times == 1


def test_failures_before_the_first_step_count_within_one_start_only(tmp_path: Path) -> None:
    for launch in (1, 2):
        attempt(tmp_path, str(launch), launch=launch, down=0, failed=0)
    streak = Streak.of(read_ledger(tmp_path))
    assert [streak.fail(0).times for _ in range(3)] == [1, 2, 3]
    assert streak.fail(0).describe() == "it failed before its first step in 4 attempts, so it would fail again"


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"1", b"\xff\xfe", b'{"event": 3, "time": 1}', b'{"event": "down"}', b"[" * 100_000,
     b'{"event": "down", "time": 1e300, "step": 9}', b'{"event": "down", "time": NaN, "step": 9}',
     b'{"event": "down", "time": "1", "step": 9}', b'{"event": "down", "time": 1, "step": "9"}',
     b'{"event": "down", "time": 1, "step": true}', b'{"event": "attempt-failed", "time": 1, "step": -5}'],
)  # fmt: skip
def test_a_line_without_sense_is_passed_over(tmp_path: Path, line: bytes) -> None:
    attempt(tmp_path, "a", launch=1, down=7, failed=7)
    (file,) = (tmp_path / "ledger").iterdir()
    file.write_bytes(line + b"\n" + file.read_bytes() + b'{"event": "down", "ti')
    (record,) = read_ledger(tmp_path)
    assert record.key == (1, 0) and record.host == "a"
    assert Streak.of([record]).fail(7).times == 2


def test_a_ledger_of_nothing(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "absent") == [] and next_launch([]) == 1
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "20260101T000000Z-0-a.jsonl").touch()
    (tmp_path / "ledger" / "folder.jsonl").mkdir()
    (record, *others) = read_ledger(tmp_path)
    assert not others and record.events == () and record.key == (0, 0)
    fields: dict[str, Any] = {"launch": True, "attempt": -1}
    (tmp_path / "ledger" / "x.jsonl").write_text(json.dumps({"event": "start", "time": 1, **fields}))
    assert [record.key for record in read_ledger(tmp_path)] == [(0, 0), (0, 0)]
