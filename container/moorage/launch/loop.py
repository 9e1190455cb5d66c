"""The supervisor's event loop: signals, sockets, deadlines and calls from other threads, one at a time.

asyncio would do the same at 0.06 s more before the first rank starts.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Callback = Callable[[], None]

_ORDER = {signal.SIGTERM: 0, signal.SIGINT: 0, signal.SIGCHLD: 1}
"""A stop that arrives together with the end of a rank is heard first: it may be why the rank ended."""


@dataclass(order=True)
class Timer:
    """`cancel()` it, or let it ring once."""

    when: float
    sequence: int
    callback: Callback | None = field(compare=False)

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Only the main thread may use it, except `soon`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._sequence = itertools.count()
        self._calls: deque[Callback] = deque()
        self._on_signal: dict[int, Callback] = {}
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)

    def on_signal(self, number: int, callback: Callback) -> None:
        """Call back from the loop, for one that was blocked until now as well; nothing runs inside the signal."""
        if not self._on_signal:
            signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self._on_signal[number] = callback
        signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})

    def watch(self, channel: socket.socket, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events (EVENT_READ, EVENT_WRITE) that `channel` is ready for; 0 stops watching it."""
        known = channel in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(channel)
        elif known:
            self._selector.modify(channel, events, callback)
        else:
            self._selector.register(channel, events, callback)

    def after(self, seconds: float, callback: Callback) -> Timer:
        timer = Timer(time.monotonic() + seconds, next(self._sequence), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def soon(self, callback: Callback) -> None:
        """Call back in the main thread; the one method that other threads may use."""
        self._calls.append(callback)
        with contextlib.suppress(OSError):  # it is awake already, or closed
            self._wake_write.send(b"\0")

    def run(self, until: Callable[[], bool]) -> None:
        """Turn until `until()` holds; it is asked after each round of events."""
        while not until():
            for key, events in self._selector.select(self._pause()):
                # A callback of this round may have stopped watching a channel of this round.
                if self._selector.get_map().get(key.fd) is not None:
                    key.data(events)
            self._ring()

    def close(self) -> None:
        """Call what was to come soon, so that nothing another thread handed over is left behind."""
        self._call()
        if self._on_signal:
            signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _pause(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if self._calls:
            return 0
        return max(0.0, self._timers[0].when - time.monotonic()) if self._timers else None

    def _ring(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()

    def _woken(self, _events: int) -> None:
        try:
            received = set(self._wake_read.recv(65536))
        except BlockingIOError:
            received = set()
        for number in sorted(received & self._on_signal.keys(), key=lambda n: _ORDER.get(n, 2)):  # type: ignore[call-overload]
            self._on_signal[number]()
        self._call()

    def _call(self) -> None:
        for _ in range(len(self._calls)):
            self._calls.popleft()()
