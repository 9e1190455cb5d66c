"""The page for Prometheus, asked over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import socket

import pytest

from moorage.serving import prometheus
from moorage.serving.metrics import CONTENT_TYPE, Metrics


async def asked(method: str, path: str, port: int) -> tuple[int, str, str]:
    def ask() -> tuple[int, str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, response.headers["Content-Type"], body

    return await asyncio.to_thread(ask)


async def served() -> tuple[asyncio.Server, int]:
    server = await prometheus.listen(Metrics().prometheus, 0)
    assert server is not None
    return server, server.sockets[0].getsockname()[1]


def test_metrics_are_read_on_loopback_alone() -> None:
    async def ask() -> None:
        server, port = await served()
        async with server:
            assert server.sockets[0].getsockname()[0] == "127.0.0.1"
            assert await asked("GET", "/metrics?x=1", port) == (200, CONTENT_TYPE, Metrics().prometheus())
            assert (await asked("HEAD", "/metrics", port))[::2] == (200, "")
            assert (await asked("GET", "/", port))[0] == 404
            assert (await asked("POST", "/metrics", port))[0] == 405

    asyncio.run(ask())


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"GET " + b"/" * 100_000 + b"\r\n\r\n"])
def test_what_asks_for_nothing_takes_nobody_elses_answer(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        server, port = await served()
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            writer.write_eof()
            with contextlib.suppress(ConnectionResetError):  # closed with more in its hands than it wanted to read
                assert (await asyncio.wait_for(reader.read(), 10))[9:12] in (b"", b"404")
            writer.close()
            assert (await asked("GET", "/metrics", port))[0] == 200

    asyncio.run(ask())
    assert not caplog.records


def test_a_port_that_is_taken_is_said_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with caplog.at_level(logging.WARNING):
            assert asyncio.run(prometheus.listen(Metrics().prometheus, port)) is None
    assert f"cannot listen on 127.0.0.1:{port}: EADDRINUSE" in caplog.text
