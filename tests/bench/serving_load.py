"""An open loop of requests: each is due at its own time, whatever became of those before, and timed from that time.

A client that waits for an answer before it asks again asks least when the server is slowest, and so hides it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import httptools

Address = tuple[str, int]

REFUSED, LOST, LATE = "refused", "lost", "no answer in time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One request and what became of it. Times as time.monotonic() has them.

    due: when it was to be sent. error: empty when a whole answer came. REFUSED: there was no connection, so it was
    never accepted. LOST: the connection ended before the whole answer. LATE: the generator gave up waiting.
    """

    due: float
    ended: float
    status: int = 0
    error: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def seconds(self) -> float:
        return self.ended - self.due


def http_request(path: str, body: bytes | None = None, **headers: str) -> bytes:
    """A GET, or a POST of `body`, as it goes over the wire. headers: content_type="text/csv" is Content-Type."""
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` of all are not above."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class Load:
    """What `offering` does and has seen so far. samples: in the order of their ends."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.sent = 0
        self._stop = threading.Event()

    def stop(self) -> None:
        """Send no more; what is under way is waited for when `offering` is left."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()


@contextlib.contextmanager
def offering(
    address: Address,
    request: bytes | Callable[[int], bytes],
    *,
    rate: float,
    fresh_every: int = 0,
    timeout: float = 30.0,
) -> Iterator[Load]:
    """`rate` requests a second from now on, in a thread, until the block is left and the last one has ended.

    request: the bytes, or what gives those of the n-th. fresh_every: each so-manieth request has a connection of its
    own; the others use one that is idle, or a new one.
    """
    load = Load()
    make = request if callable(request) else lambda _: request
    sender = _Sender(address, load, timeout)
    thread = threading.Thread(target=lambda: asyncio.run(sender.run(make, rate, fresh_every)), daemon=True)
    thread.start()
    try:
        yield load
    finally:
        load.stop()
        thread.join(timeout + 10)
        assert not thread.is_alive(), "the generator did not end"


class _Sender:
    def __init__(self, address: Address, load: Load, timeout: float) -> None:
        self._address, self._load, self._timeout = address, load, timeout
        self._idle: list[_Connection] = []

    async def run(self, make: Callable[[int], bytes], rate: float, fresh_every: int) -> None:
        start = time.monotonic()
        under_way: set[asyncio.Task[None]] = set()
        for number in itertools.count():
            due = start + number / rate
            while (early := due - time.monotonic()) > 0 and not self._load.stopped:
                await asyncio.sleep(min(early, 0.05))
            if self._load.stopped:
                break
            fresh = bool(fresh_every) and number % fresh_every == 0
            task = asyncio.create_task(self._one(make(number), due, fresh))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            self._load.sent += 1
        if under_way:
            await asyncio.gather(*under_way)
        for connection in self._idle:
            connection.close()

    async def _one(self, request: bytes, due: float, fresh: bool) -> None:
        try:
            connection = await self._connection(fresh)
        except OSError:
            self._load.samples.append(Sample(due=due, ended=time.monotonic(), error=REFUSED))
            return
        try:
            await asyncio.wait_for(connection.ask(request), max(0.0, due + self._timeout - time.monotonic()))
        except TimeoutError:
            connection.close()
            self._load.samples.append(Sample(due=due, ended=time.monotonic(), error=LATE))
            return
        self._load.samples.append(connection.sample(due))
        if connection.reusable and not fresh:
            self._idle.append(connection)
        else:
            connection.close()

    async def _connection(self, fresh: bool) -> _Connection:
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await asyncio.wait_for(loop.create_connection(_Connection, *self._address), self._timeout)
        return connection


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.reusable = True
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, request: bytes) -> None:
        """Until the answer is whole, or the connection is gone."""
        self._parser = httptools.HttpResponseParser(self)
        self._whole, self._ended = False, 0.0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        if not self.reusable:
            self._end()
        await self._done

    def sample(self, due: float) -> Sample:
        if not self._whole:
            return Sample(due=due, ended=self._ended, error=LOST)
        return Sample(
            due=due,
            ended=self._ended,
            status=self._parser.get_status_code(),
            headers=self._headers,
            body=bytes(self._body),
        )

    def close(self) -> None:
        self.reusable = False
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._end()

    def _end(self) -> None:
        if self._done is not None and not self._done.done():
            self._ended = time.monotonic()
            self._done.set_result(None)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self._whole = True
        self.reusable = self._parser.should_keep_alive()
        self._end()
