"""The link of every host but the first: a connection to the first, made anew until the job starts."""

from __future__ import annotations

import logging
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable

from moorage.contract.config import JobConfig
from moorage.contract.failure import Failure
from moorage.errors import ClusterError
from moorage.launch.absence import lost_host
from moorage.launch.agreement import REJOIN
from moorage.launch.control import SAY_EVERY, Pulse
from moorage.launch.door import HELLO_WITHIN, job_token, proof
from moorage.launch.loop import Loop
from moorage.launch.wire import Message, Wire

CONNECT_WITHIN = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0

logger = logging.getLogger("moorage")


class OtherHost:
    """A `Link` through the network."""

    def __init__(self, loop: Loop, config: JobConfig) -> None:
        self.on_message: Callable[[Message], None] = lambda message: None
        self.on_lost: Callable[[Failure], None] = lambda failure: None
        self.on_connected: Callable[[], object] = lambda: None
        self._loop, self._config = loop, config
        self._first = config.hosts[0]
        self._instance = secrets.token_hex(8)
        self._token = job_token(config)
        self._wire: Wire | None = None
        self._dialer: Dialer | None = None
        self._welcome = self._was_in = self._started = self._over = False
        self._heard_at = 0.0
        self._pulse = Pulse()
        self._join_by = time.monotonic() + config.settings.join_timeout
        self._trouble = ""

    def open(self) -> None:
        self._dial()
        self._beat()
        self._loop.after(SAY_EVERY, self._say_that_we_wait)

    def send(self, message: Message) -> bool:
        if self._wire is None or not self._welcome:
            return False
        self._wire.send(message)
        return True

    def leave(self) -> None:
        self._over = True
        if self._dialer is not None:
            self._dialer.cancel()
        if self._wire is not None:
            wire = self._wire
            wire.close(flush=True)
            self._loop.run(lambda: not wire.is_open)  # bounded by LAST_FLUSH

    def _dial(self) -> None:
        port = self._config.settings.control_port
        if not self._over:
            self._dialer = Dialer(
                self._first, port, self._join_by, lambda result: self._loop.soon(lambda: self._dialled(result))
            )

    def _dialled(self, result: socket.socket | str) -> None:
        if self._over:
            if not isinstance(result, str):
                result.close()
            return
        if isinstance(result, str):
            self._give_up(self._trouble or result)
            return
        wire = Wire(self._loop, result)
        self._wire, self._heard_at = wire, time.monotonic()
        wire.on_message = self._heard
        wire.on_closed = self._closed
        wire.send(
            {
                "type": "hello",
                "host": self._config.current_host,
                "instance": self._instance,
                "token": self._token,
            }
        )
        patience = min(HELLO_WITHIN, max(0.0, self._join_by - time.monotonic()))
        self._loop.after(patience, lambda: None if self._welcome else self._unanswered(wire))

    def _heard(self, message: Message) -> None:
        self._heard_at = time.monotonic()
        kind = message["type"]
        if kind == "welcome":
            if message.get("proof") != proof(self._token, self._instance):
                self._hang_up(f"what answers at {self._first} belongs to another job")
                return
            self._welcome = self._was_in = True
            logger.info("joined the job at %s", self._first)
            self.on_connected()
        elif kind == "refused":
            why = str(message.get("why"))
            if message.get("again"):
                self._hang_up(why)
            else:
                self._lost(Failure.from_error(_refused(self._first, why), self._config.current_host, time=time.time()))
        elif kind != "beat" and self._welcome:
            self._started |= kind == "start"
            self._over |= kind == "leave"
            self.on_message(message)

    def _say_that_we_wait(self) -> None:
        if not self._welcome and not self._over:
            logger.info("waiting for %s, %.0f s at most in all", self._first, self._config.settings.join_timeout)
            self._loop.after(SAY_EVERY, self._say_that_we_wait)

    def _unanswered(self, wire: Wire) -> None:
        if self._wire is wire:
            self._hang_up("something listens there, but does not answer as a first host does")

    def _hang_up(self, why: str) -> None:
        assert self._wire is not None
        self._wire.close()
        self._closed(why)

    def _closed(self, reason: str) -> None:
        self._wire, self._welcome = None, False
        if self._over:
            return
        if self._started:
            self._lost(lost_host(self._first, reason))
            return
        if reason != self._trouble:
            logger.warning("no place at %s yet: %s; trying again", self._first, reason)
        self._trouble = reason
        if self._was_in:
            # A first host that ended before the start is not waited for as long as one that has yet to come.
            self._join_by = min(self._join_by, time.monotonic() + REJOIN)
        self._loop.after(random.uniform(0.2, 1.0), self._dial)

    def _beat(self) -> None:
        timeout = self._config.settings.heartbeat_timeout
        if self._wire is not None:
            silent = time.monotonic() - self._heard_at
            if silent > timeout and not self._pulse.slept(timeout):
                self._wire.close()
                self._lost(lost_host(self._first, f"not heard of for {silent:.0f} s"))
                return
            self.send({"type": "beat"})
        if not self._over:
            self._loop.after(self._pulse.next(timeout), self._beat)

    def _give_up(self, why: str) -> None:
        if self._was_in:
            self._lost(lost_host(self._first, why))
            return
        error = ClusterError(
            f"{self._first} could not be joined within {self._config.settings.join_timeout:.0f} s",
            why=why,
            fix=f"look at the log of {self._first}, where current_host in resourceconfig.json must be that name; "
            "the settings are join_timeout and control_port",
        )
        self._lost(Failure.from_error(error, self._config.current_host, time=time.time()))

    def _lost(self, failure: Failure) -> None:
        if not self._over:
            self._over = True
            self.on_lost(failure)


class Dialer:
    """Connects in a thread of its own, since looking up a name can block for long; tries until the deadline."""

    def __init__(self, host: str, port: int, deadline: float, done: Callable[[socket.socket | str], None]) -> None:
        """done: called in that thread with the socket, or with what went wrong last."""
        self._host, self._port, self._deadline, self._done = host, port, deadline, done
        self._cancelled = threading.Event()
        self._handing_over = threading.Lock()
        threading.Thread(target=self._run, name="dial", daemon=True).start()

    def cancel(self) -> None:
        """`done` is not called any more."""
        with self._handing_over:
            self._cancelled.set()

    def _run(self) -> None:
        result = self._connect()
        with self._handing_over:
            if not self._cancelled.is_set():
                self._done(result)
            elif not isinstance(result, str):
                result.close()

    def _connect(self) -> socket.socket | str:
        pause, trouble = _FIRST_PAUSE, "no time was left to try"
        while time.monotonic() < self._deadline:
            try:
                return socket.create_connection((self._host, self._port), timeout=CONNECT_WITHIN)
            except (OSError, UnicodeError) as error:
                trouble = f"{self._host}:{self._port}: {getattr(error, 'strerror', None) or error}"
            # Jitter, so that a hundred hosts started together do not come together.
            if self._cancelled.wait(min(random.uniform(0.5, 1.0) * pause, max(0.0, self._deadline - time.monotonic()))):
                break
            pause = min(2 * pause, _LONGEST_PAUSE)
        return trouble


def _refused(first: str, why: str) -> ClusterError:
    return ClusterError(f"the first host, {first}, refused this one", why=why)
