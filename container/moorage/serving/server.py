"""uvicorn, with what it lacks for a port that anybody may reach: time limits, a number of connections, a slow end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from moorage.serving.settings import ServeSettings

KEEP_ALIVE = 75
"""Seconds that a connection without a request stays open; longer than those who pool them keep them."""

BACKLOG = 2048

LAST_WORD = 1.0
"""Seconds after SIGTERM in which a request that was on its way on an idle connection still comes."""

logger = logging.getLogger("moorage")


class Protocol(HttpToolsProtocol):
    """One connection. left: called when its client leaves before its answer is whole.

    head_since: by the loop's clock, when the head of a request that is not whole yet was begun; 0 where there is none.
    """

    left: Callable[[], None] | None = None
    head_since = 0.0
    most = 0
    """Connections. This and `draining` are set on a class of its own by `Front`."""
    draining = False
    """Every answer is the last of its connection."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.head_since = self.loop.time()
        if len(self.connections) > self.most:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.head_since = 0.0
        if self.left is not None:
            self.left()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["moorage"] = self  # type: ignore[typeddict-unknown-key]
        self.head_since = self.loop.time()

    def on_headers_complete(self) -> None:
        self.head_since = 0.0
        super().on_headers_complete()
        if self.draining:
            self.cycle.keep_alive = False


class Front(uvicorn.Server):
    """It listens from `open` to `end`; signals are the caller's."""

    def __init__(self, app: Any, listener: socket.socket, settings: ServeSettings) -> None:
        class Limited(Protocol):
            most = settings.max_connections

        super().__init__(
            uvicorn.Config(
                app, http=Limited, loop="none", lifespan="off", log_config=None, access_log=False,
                server_header=False, timeout_keep_alive=KEEP_ALIVE, backlog=BACKLOG, ws="none", interface="asgi3",
            )
        )  # fmt: skip
        self._protocol, self._listener, self._settings = Limited, listener, settings
        self._ticking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.on_tick(0)  # the date, which every answer has
        await self.startup(sockets=[self._listener])
        self._ticking = asyncio.create_task(self._tick())

    @property
    def _connections(self) -> list[Protocol]:
        return [connection for connection in self.server_state.connections if isinstance(connection, Protocol)]

    async def _tick(self) -> None:
        counter = 0
        while True:
            await asyncio.sleep(0.5)
            counter += 5
            await self.on_tick(counter)
            self._hang_up_on_the_slow()

    def _hang_up_on_the_slow(self) -> None:
        late = asyncio.get_running_loop().time() - self._settings.header_timeout
        for connection in self._connections:
            if 0 < connection.head_since < late:
                connection.transport.abort()

    async def end(self, seconds: float) -> int:
        """Accept what waits to be accepted, answer what was accepted, close. Returns the connections cut short."""
        self._protocol.draining = True
        # What the kernel has accepted for us is a client's request already: a turn of the loop takes it.
        await asyncio.sleep(0.05)
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self.server_state.connections and loop.time() < until:
            idle = until - loop.time() < seconds - LAST_WORD
            for connection in self._connections:
                if connection.cycle is not None and not connection.cycle.response_complete:
                    connection.cycle.keep_alive = False
                elif idle:
                    connection.transport.close()
            await asyncio.sleep(0.02)
        left = self._connections
        for connection in left:
            connection.transport.abort()
        if self._ticking is not None:
            self._ticking.cancel()
        return len(left)
