"""The access log: whole lines of JSON whatever a client sends, none lost, and no memory without end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from moorage.processes.logs import STDOUT, LogPump
from moorage.serving.access import EVERY, AccessLog


class Loop:
    """What is to run later."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self.asked.append((seconds, function))


def write(log: AccessLog, path: str = "/invocations", **more: object) -> None:
    log.write(request_id="id-1", method="POST", path=path, status=200, seconds=0.0125, **more)


def test_lines_go_out_together_through_the_pump() -> None:
    read, written = os.pipe()
    pump, loop = LogPump(stdout=written), Loop()
    log = AccessLog(pump, target=STDOUT, later=loop.call_later, clock=lambda: 1_700_000_000.25)
    write(log, bytes_in=30, bytes_out=20, batch_size=4, queue_seconds=0.001)
    write(log, '/a"b\nc\x00\udcff')
    ((seconds, flush),) = loop.asked
    assert seconds == EVERY
    flush()
    log.flush()
    write(log)
    assert len(loop.asked) == 2, "asked for again only once there is something again"
    log.flush()
    assert pump.close()
    os.close(written)
    with os.fdopen(read, "rb") as file:
        first, second, _ = map(json.loads, file.read().splitlines())
    assert first == {
        "time": "2023-11-14T22:13:20.250Z", "id": "id-1", "method": "POST", "path": "/invocations", "status": 200,
        "ms": 12.5, "in": 30, "out": 20, "batch": 4, "queue_ms": 1.0,
    }  # fmt: skip
    assert second["path"] == '/a"b\nc\x00\udcff' and "batch" not in second


def test_what_a_blocked_output_does_not_take_is_counted() -> None:
    read, written = os.pipe()
    pump, loop = LogPump(stdout=written), Loop()
    log = AccessLog(pump, target=STDOUT, later=loop.call_later)
    lines = 0
    while not log.left_out:  # nobody reads
        for _ in range(1000):
            write(log)
        log.flush()
        lines += 1000
        assert lines < 1_000_000
    with os.fdopen(read, "rb") as file, ThreadPoolExecutor(1) as reader:
        taken = reader.submit(file.read)
        while pump.waiting:
            os.sched_yield()
        write(log)
        log.flush()
        assert pump.close()
        os.close(written)
        told = [json.loads(line) for line in taken.result(30).splitlines()]
    assert [line["left_out"] for line in told if "left_out" in line] == [1000]
    assert len(told) == lines - 1000 + 2


def test_none_is_written_where_none_is_wanted() -> None:
    read, written = os.pipe()
    pump, loop = LogPump(stdout=written), Loop()
    log = AccessLog(pump, target=STDOUT, later=loop.call_later, enabled=False)
    write(log)
    log.flush()
    assert pump.close() and not loop.asked
    os.close(written)
    with os.fdopen(read, "rb") as file:
        assert file.read() == b""
