"""The access log: a line of JSON for each request, gathered so that none of them waits for whoever reads the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Protocol

EVERY = 0.1
"""Seconds after which a line is in the log at the latest."""

_WAITING = 64
"""Handfuls of lines that wait while the output is blocked; more are left out, and counted."""


class Sink(Protocol):
    """Where lines go: processes.logs.LogPump."""

    @property
    def waiting(self) -> int: ...

    def say(self, text: str, target: int = ...) -> None: ...


class AccessLog:
    """Used in one thread. later: runs a function after so many seconds, as the loop's call_later."""

    def __init__(
        self,
        sink: Sink,
        *,
        target: int,
        later: Callable[[float, Callable[[], None]], Any],
        enabled: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sink, self._target, self._later, self._enabled, self._clock = sink, target, later, enabled, clock
        self._lines: list[str] = []
        self._due = False
        self.left_out = 0
        """Lines that a blocked output did not take, until it is said."""
        self._second, self._stamp = -1, ""

    def write(
        self,
        *,
        request_id: str,
        method: str,
        path: str,
        status: int,
        seconds: float,
        bytes_in: int = 0,
        bytes_out: int = 0,
        batch_size: int = 0,
        queue_seconds: float = 0.0,
    ) -> None:
        """path: without its query, which may hold what no log should. batch_size: 0 where no model saw the request."""
        if not self._enabled:
            return
        batch = f',"batch":{batch_size},"queue_ms":{queue_seconds * 1000:.3f}' if batch_size else ""
        self._lines.append(
            f'{{"time":"{self._now()}","id":{quoted(request_id)},"method":{quoted(method)},"path":{quoted(path)},'
            f'"status":{status},"ms":{seconds * 1000:.3f},"in":{bytes_in},"out":{bytes_out}{batch}}}'
        )
        if not self._due:
            self._due = True
            self._later(EVERY, self.flush)

    def flush(self) -> None:
        """Everything so far; to be called once more at the end."""
        self._due = False
        lines, self._lines = self._lines, []
        if not lines:
            return
        if self._sink.waiting >= _WAITING:
            self.left_out += len(lines)
            return
        if self.left_out:
            lines.insert(0, f'{{"time":"{self._now()}","left_out":{self.left_out}}}')
            self.left_out = 0
        self._sink.say("\n".join(lines), self._target)

    def _now(self) -> str:
        now = self._clock()
        second = int(now)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{int((now - second) * 1000):03d}Z"
