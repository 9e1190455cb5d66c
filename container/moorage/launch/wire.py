"""One connection of the control channel: JSON objects, one a line, bounded in every direction."""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable
from typing import Any

from moorage.launch.loop import Loop

Message = dict[str, Any]

LONGEST_LINE = 64 * 1024
"""Of a known host. A failure with its frames takes a few KiB."""

LONGEST_UNSENT = 1024 * 1024
LAST_FLUSH = 2.0
"""Seconds in which a closing connection may still take what is unsent."""


class Wire:
    """Reads and writes without ever blocking; calls back from the loop.

    on_message: with each object. on_closed: once, with the reason, unless we closed it ourselves.
    """

    def __init__(self, loop: Loop, channel: socket.socket, *, longest_line: int = LONGEST_LINE) -> None:
        # A socket that connected under a timeout keeps that timeout for its reads.
        channel.setblocking(False)
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.longest_line = longest_line
        self.on_message: Callable[[Message], None] = lambda message: None
        self.on_closed: Callable[[str], None] = lambda reason: None
        self.is_open = True
        self._closing = False
        self._loop, self._channel = loop, channel
        self._in, self._out = bytearray(), bytearray()
        loop.watch(channel, selectors.EVENT_READ, self._ready)

    def send(self, message: Message) -> None:
        if not self.is_open or self._closing:
            return
        self._out += json.dumps(message).encode() + b"\n"
        if len(self._out) > LONGEST_UNSENT:
            self._end("it does not read what it is sent")
        else:
            self._flush()

    def close(self, *, flush: bool = False) -> None:
        """Without a callback. flush: after what is unsent has gone."""
        if flush and self._out and self.is_open:
            self._closing = True
            self._loop.after(LAST_FLUSH, self.close)
            return
        if self.is_open:
            self.is_open = False
            self._loop.watch(self._channel, 0, self._ready)
            self._channel.close()

    @property
    def unsent(self) -> int:
        return len(self._out) if self.is_open else 0

    def _end(self, reason: str) -> None:
        if self.is_open:
            told = not self._closing
            self.close()
            if told:
                self.on_closed(reason)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ and self.is_open:
            self._read()

    def _flush(self) -> None:
        try:
            sent = self._channel.send(self._out) if self._out else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._end(error.strerror or str(error))
            return
        del self._out[:sent]
        if self._closing and not self._out:
            self.close()
            return
        write = selectors.EVENT_WRITE if self._out else 0
        self._loop.watch(self._channel, selectors.EVENT_READ | write, self._ready)

    def _read(self) -> None:
        try:
            data = self._channel.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error.strerror or str(error))
            return
        if not data:
            self._end("the connection was closed")
            return
        if self._closing:
            return
        self._in += data
        while self.is_open and not self._closing:
            line, newline, rest = self._in.partition(b"\n")
            if len(line) > self.longest_line:
                self._end(f"a line longer than {self.longest_line} bytes")
                return
            if not newline:
                return
            self._in = rest
            self._take(bytes(line))

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            self._end("a line that is not JSON")
            return
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            self._end("a line that is not a message")
            return
        self.on_message(message)
