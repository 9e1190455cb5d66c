"""What supervisors and ranks write for one another: the ledger and the progress of the ranks."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.contract.ledger import Ledger, attempt_name
from moorage.contract.progress import Progress, clear_progress, read_progress
from moorage.launch.restart import folder_state


@pytest.fixture(autouse=True)
def _our_log_is_seen() -> Iterator[None]:
    logger = logging.getLogger("moorage")
    before = logger.propagate
    logger.propagate = True
    yield
    logger.propagate = before


def test_progress_is_the_highest_step_of_the_host(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    first, second = Progress.create(tmp_path, 0), Progress.create(tmp_path, 1)
    assert read_progress(tmp_path) == 0
    first.update(7)
    second.update(8)
    assert read_progress(tmp_path) == 8
    (tmp_path / "progress-2").write_bytes(b"torn")
    assert read_progress(tmp_path) == 8
    first.close()
    second.close()
    clear_progress(tmp_path)
    assert read_progress(tmp_path) is None


def _write_many(folder: Path, who: int) -> None:
    ledger = Ledger.of_run(folder)
    for number in range(300):
        ledger.write("step", who=who, number=number, padding="x" * 500)


def test_two_processes_append_whole_lines_to_one_ledger(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "checkpoints", "algo-1", attempt_name(0.0, 2))
    ledger.point(tmp_path)
    ledger.write("start", attempt=2)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, who)) for who in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    (file,) = (tmp_path / "checkpoints" / "ledger").iterdir()
    assert file.name == "19700101T000000Z-2-algo-1.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(events) == 601
    for who in range(2):
        assert [event["number"] for event in events if event.get("who") == who] == list(range(300))
    assert events[0]["event"] == "start" and abs(events[0]["time"] - time.time()) < 60
    ledger.close()


def test_a_ledger_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ledger").write_text("a file where a folder should be")
    ledger = Ledger.open(tmp_path, "algo-1", "x")
    for _ in range(3):
        ledger.write("start")
    ledger.point(tmp_path)
    assert caplog.text.count("no ledger: cannot write") == 1
    Ledger.of_run(tmp_path).write("start")
    Ledger.of_run(None).write("start")
    assert len(caplog.records) == 1


def test_a_host_name_cannot_lead_out_of_the_ledger(tmp_path: Path) -> None:
    Ledger.open(tmp_path, "../../evil", "x").close()
    assert [file.name for file in (tmp_path / "ledger").iterdir()] == ["x-.._.._evil.jsonl"]


def test_what_counts_as_a_change_of_the_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "shard").write_text("1")
    before = folder_state(tmp_path)
    Ledger.open(tmp_path, "algo-1", "x").close()
    (tmp_path / "step-1" / "shard.sagemaker-uploaded").touch()
    (tmp_path / "step-2.sagemaker-ignore").mkdir()
    (tmp_path / "step-2.sagemaker-ignore" / "shard").touch()
    assert folder_state(tmp_path) == before
    os.utime(tmp_path / "step-1" / "shard", ns=(1, 1))
    changed = folder_state(tmp_path)
    assert changed != before
    (tmp_path / "step-2").touch()
    assert folder_state(tmp_path) not in (before, changed)
    assert folder_state(tmp_path / "absent") == folder_state(tmp_path / "absent")
