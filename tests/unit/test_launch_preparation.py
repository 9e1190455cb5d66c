"""Preparing in a process of its own: what it made, why it could not, and that it can be ended at any time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import Job
from moorage.contract.failure import Failure
from moorage.contract.program import Program
from moorage.errors import RequirementsError
from moorage.launch.loop import Loop
from moorage.launch.preparation import Preparation, Prepared
from moorage.processes.logs import LogPump

PREPARED = Prepared(
    program=Program(
        argv=("python3", "train.py", "--text", 'a\'b\n"c" $(d) é\udcff'),
        cwd=Path("/code"),
        env={"PYTHONPATH": "/code"},
        fingerprint="f",
        description="train.py",
        code=Path("/code"),
        entry="train.py",
    ),
    job_env={"SM_HPS": '{"a": 1}', "LONG": "x" * 100_000},
)


def good() -> Prepared:
    return PREPARED


def cannot() -> Prepared:
    raise RequirementsError("pip failed", why="no such version", fix="correct it")


def broken() -> Prepared:
    raise KeyError("our own mistake")


def killed() -> Prepared:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def endless() -> Prepared:
    time.sleep(600)
    raise AssertionError


class Bench:
    def __init__(self, folder: Path) -> None:
        self.config = Job(folder).config()
        self.loop = Loop()
        self.results: list[Prepared | Failure] = []

    def begin(self, work: Callable[[], Prepared]) -> Preparation:
        preparation = Preparation(self.config, work)
        preparation.on_done = preparation.on_failed = self.results.append
        self.pump = LogPump(self.quiet, self.quiet)
        preparation.attach(self.loop, self.pump)
        return preparation

    def result(self, preparation: Preparation) -> Prepared | Failure:
        _, status = os.waitpid(preparation.pid, 0)
        preparation.ended(preparation.pid, os.waitstatus_to_exitcode(status))
        over = time.monotonic() + 10
        self.loop.after(10, lambda: None)
        self.loop.run(lambda: bool(self.results) or time.monotonic() > over)
        (result,) = self.results
        return result

    def __enter__(self) -> Bench:
        self.quiet = os.open(os.devnull, os.O_WRONLY)
        return self

    def __exit__(self, *_: object) -> None:
        self.pump.close()
        os.close(self.quiet)
        self.loop.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as bench:
        yield bench


def test_what_was_prepared_comes_back_whole(bench: Bench) -> None:
    assert bench.result(bench.begin(good)) == PREPARED


def test_a_result_is_not_overlooked_when_the_end_is_heard_of_first(bench: Bench) -> None:
    """As on a busy machine, where the process sends it and is gone within one turn of the loop."""
    preparation = bench.begin(good)
    _, status = os.waitpid(preparation.pid, 0)
    preparation.ended(preparation.pid, os.waitstatus_to_exitcode(status))
    preparation._died()
    assert bench.results == []
    bench.loop.run(lambda: bool(bench.results))
    assert bench.results == [PREPARED]


def test_an_error_of_the_user_keeps_its_words_and_its_code(bench: Bench) -> None:
    failure = bench.result(bench.begin(cannot))
    assert isinstance(failure, Failure)
    assert (failure.message, failure.code, failure.rank) == ("pip failed. no such version. correct it.", 65, None)


def test_an_error_of_ours_shows_where(bench: Bench) -> None:
    failure = bench.result(bench.begin(broken))
    assert isinstance(failure, Failure)
    assert failure.message == "preparing the job failed with exit code 1: KeyError: 'our own mistake'"
    assert failure.frames[-1].endswith("""in broken: raise KeyError("our own mistake")""")


def test_a_preparation_that_was_killed_is_a_failure(bench: Bench) -> None:
    failure = bench.result(bench.begin(killed))
    assert isinstance(failure, Failure)
    assert (failure.message, failure.code) == ("preparing the job was killed by SIGKILL", 137)
    assert "memory" in failure.hint


def test_it_ends_at_once_and_says_nothing_when_it_is_not_wanted_any_more(bench: Bench) -> None:
    preparation = bench.begin(endless)
    preparation.kill()
    _, status = os.waitpid(preparation.pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    preparation.ended(preparation.pid, -9)
    over = time.monotonic() + 1.2
    bench.loop.after(1.2, lambda: None)
    bench.loop.run(lambda: time.monotonic() >= over)
    assert bench.results == []
