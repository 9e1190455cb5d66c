"""The load generator against a bare server: its rate, its clock, and what it says of lost requests."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bench.serving_load import LATE, LOST, REFUSED, Address, Load, http_request, offering, percentile
from support import free_port, wait_until

APP = """
import asyncio, time
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def echo(request):
    return JSONResponse({"got": len(await request.body()), "query": request.url.query})

async def block(request):
    time.sleep(0.4)
    return JSONResponse({})

async def close(request):
    return JSONResponse({}, headers={"Connection": "close"})

async def never(request):
    await asyncio.sleep(60)

app = Starlette(routes=[
    Route("/echo", echo, methods=["POST"]), Route("/block", block), Route("/close", close), Route("/never", never),
])
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    folder = tmp_path_factory.mktemp("bare")
    (folder / "app.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, cwd=folder) as process:
        address = ("127.0.0.1", port)
        try:
            wait_until(lambda: listens(address), timeout=30, what="the bare server")
            yield address
        finally:
            process.kill()


def listens(address: Address) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False


def until(load: Load, count: int) -> None:
    wait_until(lambda: len(load.samples) >= count, timeout=30, what=f"{count} answers")


def test_requests_come_at_the_rate_and_each_has_its_answer(bare: Address) -> None:
    def request(number: int) -> bytes:
        return http_request(f"/echo?{number}", b"x" * number, content_type="text/plain")

    with offering(bare, request, rate=200) as load:
        until(load, 100)
    assert len(load.samples) == load.sent
    assert {(sample.status, sample.error) for sample in load.samples} == {(200, "")}
    by_due = sorted(load.samples, key=lambda sample: sample.due)
    assert [sample.body for sample in by_due] == [b'{"got":%d,"query":"%d"}' % (n, n) for n in range(load.sent)]
    gaps = {round(later.due - sooner.due, 6) for sooner, later in itertools.pairwise(by_due)}
    assert gaps == {0.005}


def test_a_server_that_stands_still_is_seen_by_all_that_were_due_meanwhile(bare: Address) -> None:
    with offering(bare, http_request("/echo", b""), rate=100) as load:
        until(load, 20)
        started = time.monotonic()
        with socket.create_connection(bare) as connection:
            connection.sendall(http_request("/block"))
            connection.recv(1)
        took = time.monotonic() - started
        until(load, 100)
    slow = [sample for sample in load.samples if sample.seconds > 0.1]
    # Sent by a closed loop, one would have waited; here every one that was due within all but the last 0.1 s.
    assert len(slow) >= 0.8 * (took - 0.1) * 100
    assert max(sample.seconds for sample in load.samples) >= 0.8 * took


def test_a_closed_connection_is_not_used_again(bare: Address) -> None:
    with offering(bare, http_request("/close"), rate=100) as load:
        until(load, 20)
    assert {(sample.status, sample.error) for sample in load.samples} == {(200, "")}


def test_fresh_requests_have_a_connection_of_their_own() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        offering(server.getsockname(), http_request("/"), rate=100, fresh_every=1, timeout=5) as load,
    ):
        for _ in range(3):
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        until(load, 3)
        load.stop()
        server.close()
    assert [sample.status for sample in load.samples[:3]] == [204] * 3


def test_what_is_lost_refused_or_late_is_told_apart(bare: Address) -> None:
    gone = ("127.0.0.1", free_port())
    with offering(gone, http_request("/"), rate=100) as load:
        until(load, 3)
    assert {sample.error for sample in load.samples} == {REFUSED}

    with offering(bare, http_request("/never"), rate=20, timeout=0.2) as load:
        until(load, 3)
    assert {sample.error for sample in load.samples} == {LATE}
    assert min(sample.seconds for sample in load.samples) >= 0.2

    with socket.create_server(("127.0.0.1", 0)) as server:
        with offering(server.getsockname(), http_request("/"), rate=10, timeout=5) as load:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
            until(load, 1)
            load.stop()
            server.close()
        assert load.samples[0].error == LOST


def test_percentiles() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([7.0], 0.99) == 7.0
