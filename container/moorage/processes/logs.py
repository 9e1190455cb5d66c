"""The log: lines of every process, whole and in order, written by one thread so that nothing else ever waits for it."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from moorage.processes.lines import Lines

STDOUT, STDERR = 1, 2
TAIL_LINES, TAIL_BYTES = 400, 64 * 1024
_TAIL_LINE = 4096
_LAST_READ = 1024 * 1024
"""Bytes still taken from a pipe that somebody else holds open: more than it holds, and an end to one who goes on."""

_OWN_LINES = 10_000
"""Of ours that wait while the output is blocked; then the oldest are left out."""


@dataclass(eq=False, kw_only=True)
class Stream:
    """One pipe of one process.

    target: STDOUT or STDERR. on_end: called in the pump's thread when all there was has been written.
    tail: its last lines, without the prefix.
    """

    descriptor: int
    target: int
    prefix: bytes = b""
    on_end: Callable[[], None] = lambda: None
    lines: Lines = field(default_factory=Lines)
    tail: deque[bytes] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    tail_size: int = 0

    def remember(self, line: bytes) -> None:
        if len(line) > _TAIL_LINE:
            line = line[: _TAIL_LINE // 2] + b" ... " + line[-_TAIL_LINE // 2 :]
        if len(self.tail) == self.tail.maxlen:
            self.tail_size -= len(self.tail.popleft())
        self.tail.append(line)
        self.tail_size += len(line)
        while self.tail_size > TAIL_BYTES:
            self.tail_size -= len(self.tail.popleft())


class LogPump:
    """Starts with its thread. Every method may be called from the main thread, and none of them blocks but `close`."""

    def __init__(self, stdout: int = STDOUT, stderr: int = STDERR) -> None:
        self._targets: dict[int, int | None] = {STDOUT: stdout, STDERR: stderr}
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._added: deque[Stream] = deque()
        self._dropped: deque[Stream] = deque()
        self._own: deque[tuple[int, bytes]] = deque(maxlen=_OWN_LINES)
        self._closing = False
        # A daemon: a process whose output nobody reads must still be able to end.
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def add(self, stream: Stream) -> Stream:
        """The pump owns the descriptor from now on."""
        os.set_blocking(stream.descriptor, False)
        self._added.append(stream)
        self._wake()
        return stream

    def drop(self, stream: Stream) -> None:
        """Take what is in the pipe and close it, whoever else still holds it open. Harmless after its end."""
        self._dropped.append(stream)
        self._wake()

    @property
    def waiting(self) -> int:
        """Of our own lines, those that are not written yet."""
        return len(self._own)

    def say(self, text: str, target: int = STDERR) -> None:
        """A line of our own."""
        self._own.append((target, text.encode("utf-8", "backslashreplace")))
        self._wake()

    def close(self, timeout: float = 5.0) -> bool:
        """Write what there is and end the thread. False when the output did not take it within `timeout` seconds."""
        self._closing = True
        self._wake()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()
        return True

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it has been woken more often than it could look
            self._wake_write.send(b"\0")

    def _run(self) -> None:
        streams: set[Stream] = set()
        while True:
            closing = self._closing  # read before the queues: what was put there before it is still written
            ready = self._selector.select(0 if closing else self._pause(streams))
            while self._own:
                self._write(*self._own.popleft())
            while self._added:
                stream = self._added.popleft()
                streams.add(stream)
                self._selector.register(stream.descriptor, selectors.EVENT_READ, stream)
            for key, _ in ready:
                if key.data is None:
                    self._drain_wake()
                elif not self._read(key.data):
                    self._end(key.data, streams)
            ended = list(streams) if closing else [self._dropped.popleft() for _ in range(len(self._dropped))]
            for stream in ended:
                if stream in streams:
                    self._read_rest(stream)
                    self._end(stream, streams)
            for stream in streams:
                self._write_lines(stream, stream.lines.due(time.monotonic()))
            if closing and not self._own and not self._added:
                return

    def _pause(self, streams: set[Stream]) -> float | None:
        due = [at for stream in streams if (at := stream.lines.due_at) is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(65536)

    def _read(self, stream: Stream) -> int:
        """Bytes taken; 0 at the end of the stream."""
        try:
            data = os.read(stream.descriptor, 65536)
        except BlockingIOError:
            return 1
        except OSError:
            return 0
        self._write_lines(stream, stream.lines.feed(data, time.monotonic()))
        return len(data)

    def _read_rest(self, stream: Stream) -> None:
        taken = 0
        while taken < _LAST_READ:
            try:
                data = os.read(stream.descriptor, 65536)
            except OSError:
                return
            if not data:
                return
            taken += len(data)
            self._write_lines(stream, stream.lines.feed(data, time.monotonic()))

    def _end(self, stream: Stream, streams: set[Stream]) -> None:
        self._write_lines(stream, stream.lines.close())
        self._selector.unregister(stream.descriptor)
        os.close(stream.descriptor)
        streams.discard(stream)
        stream.on_end()

    def _write_lines(self, stream: Stream, lines: list[bytes]) -> None:
        for line in lines:
            stream.remember(line)
            self._write(stream.target, stream.prefix + line)

    def _write(self, target: int, line: bytes) -> None:
        descriptor = self._targets[target]
        if descriptor is None:
            return
        data = memoryview(line + b"\n")
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # somebody made the descriptor we share with them non-blocking
                with selectors.DefaultSelector() as waiting:
                    waiting.register(descriptor, selectors.EVENT_WRITE)
                    waiting.select()
            except OSError:
                # Nobody listens any more. The processes must not notice: reading on keeps them from blocking.
                self._targets[target] = None
                return


class PumpHandler(logging.Handler):
    """Our own log lines through the pump: the main thread never waits for whoever reads the log."""

    def __init__(self, pump: LogPump) -> None:
        super().__init__()
        self._pump = pump
        self.setFormatter(LineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).split("\n"):
            self._pump.say(line)


class LineFormatter(logging.Formatter):
    """`moorage: ...` before every line of a message."""

    def format(self, record: logging.LogRecord) -> str:
        mark = "moorage: " if record.levelno < logging.WARNING else f"moorage: {record.levelname.lower()}: "
        return "\n".join(mark + line for line in super().format(record).split("\n"))
