"""GET /metrics on 127.0.0.1: for whoever runs beside `serve`, and nobody else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from moorage.errors import describe
from moorage.serving.metrics import CONTENT_TYPE

ADDRESS = "127.0.0.1"
_PATIENCE = 5.0
"""Seconds for a request to come and for its answer to be taken."""
_LONGEST = 16 * 1024
"""Bytes of a request's head."""

logger = logging.getLogger("moorage")


async def listen(page: Callable[[], str], port: int) -> asyncio.Server | None:
    """Answer with `page()`, in this loop, until the server is closed. None where the port is not to be had: logged."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                writer.write(_answer((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0], page))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it has left, or is none that asks for metrics
        finally:
            writer.close()

    try:
        return await asyncio.start_server(answer, ADDRESS, port, limit=_LONGEST)
    except OSError as error:
        logger.warning("no metrics for Prometheus: cannot listen on %s:%d: %s", ADDRESS, port, describe(error))
        return None


def _answer(line: bytes, page: Callable[[], str]) -> bytes:
    method, _, rest = line.partition(b" ")
    if rest.partition(b" ")[0].partition(b"?")[0] != b"/metrics":
        return _response("404 Not Found", "metrics are at /metrics\n")
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", "metrics are read by GET\n", "Allow: GET, HEAD\r\n")
    return _response("200 OK", page(), with_body=method == b"GET")


def _response(status: str, text: str, more: str = "", *, with_body: bool = True) -> bytes:
    body = text.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n{more}"
    return (head + "Connection: close\r\n\r\n").encode("ascii") + (body if with_body else b"")
