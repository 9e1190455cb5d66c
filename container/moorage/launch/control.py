"""The control channel: each supervisor's link to what the hosts agree on.

On the first host the agreement is at home, and the link to it is a call; with one host that is all there is. Every
other host has a connection to the first. Both are a `Link`, so a supervisor does not know which it has.
"""

from __future__ import annotations

import logging
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from moorage.contract.config import JobConfig
from moorage.contract.failure import Failure
from moorage.errors import ClusterError
from moorage.launch.agreement import REJOIN, Agreement, Send, lost_host
from moorage.launch.door import HELLO_WITHIN, Door, job_token, proof
from moorage.launch.loop import Loop, Timer
from moorage.launch.wire import Message, Wire

LAST_WORDS = 3.0
"""Seconds that a host stays so that the others hear that it is over, or stopped, those too that have yet to come."""

CONNECT_WITHIN = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0

logger = logging.getLogger("moorage")


class Link(Protocol):
    """on_message: start, stop, end, leave. on_lost: the agreement cannot be reached any more.
    on_connected: say again what was said before the start."""

    on_message: Callable[[Message], None]
    on_lost: Callable[[Failure], None]
    on_connected: Callable[[], object]

    def open(self) -> None: ...

    def send(self, message: Message) -> bool:
        """False when nobody hears it."""

    def leave(self) -> None:
        """Close, when the others have heard the verdict."""


class FirstHost:
    """Where the agreement is."""

    def __init__(self, loop: Loop, config: JobConfig, agreement: Agreement) -> None:
        self.on_message: Callable[[Message], None] = lambda message: None
        self.on_lost: Callable[[Failure], None] = lambda failure: None
        self.on_connected: Callable[[], object] = lambda: None
        self._loop, self._config, self._agreement = loop, config, agreement
        self._host, *self._others = config.hosts
        self._wires: dict[str, Wire] = {}
        self._instances: dict[str, str] = {}
        self._heard_at: dict[str, float] = {}
        self._pulse = Pulse()
        self._door: Door | None = None
        self._timer: Timer | None = None

    def open(self) -> None:
        """Raises ConfigError when the port is taken."""
        if self._others:
            self._door = Door(
                self._loop,
                port=self._config.settings.control_port,
                token=job_token(self._config),
                hosts=self._others,
                admit=self._admit,
                on_guest=self._guest,
            )
            self._beat()
        self._do(self._agreement.joined(self._host, time.monotonic()))
        self.on_connected()

    def send(self, message: Message) -> bool:
        self._do(self._agreement.heard(self._host, message, time.monotonic()))
        return True

    def leave(self) -> None:
        if self._door is None:
            return
        until = time.monotonic() + LAST_WORDS
        timer = self._loop.after(LAST_WORDS, lambda: None)
        self._loop.run(lambda: time.monotonic() >= until or not (self._wires or self._agreement.absent()))
        timer.cancel()
        self._door.close()
        for wire in self._wires.values():
            wire.close()

    def _admit(self, host: str, instance: str) -> str | None:
        if self._instances.setdefault(host, instance) == instance:
            return None
        return (
            f"another container named {host} has joined already: "
            "current_host in resourceconfig.json must be different on each host"
        )

    def _guest(self, host: str, wire: Wire) -> None:
        if host in self._wires:
            # Its end noticed a break that ours did not.
            self._wires.pop(host).close()
            self._do(self._agreement.disconnected(host, "it connected anew", time.monotonic()))
        self._wires[host] = wire
        self._heard_at[host] = time.monotonic()
        wire.on_message = lambda message: self._heard(host, wire, message)
        wire.on_closed = lambda reason: self._closed(host, wire, reason)
        logger.info("%s joined (%d of %d hosts)", host, len(self._wires) + 1, len(self._config.hosts))
        self._do(self._agreement.joined(host, time.monotonic()))

    def _heard(self, host: str, wire: Wire, message: Message) -> None:
        self._heard_at[host] = time.monotonic()
        if message["type"] == "beat":
            return
        try:
            sends = self._agreement.heard(host, message, time.monotonic())
        except (KeyError, TypeError, ValueError) as error:
            wire.close()
            self._closed(host, wire, f"it sent a message that makes no sense ({type(error).__name__}: {error})")
            return
        self._do(sends)

    def _closed(self, host: str, wire: Wire, reason: str) -> None:
        if self._wires.get(host) is wire:
            del self._wires[host]
            self._do(self._agreement.disconnected(host, reason, time.monotonic()))

    def _do(self, sends: list[Send]) -> None:
        for host, message in sends:
            if host == self._host:
                # Not now: whoever called is in the middle of something.
                self._loop.soon(lambda message=message: self.on_message(message))  # type: ignore[misc]
            elif host in self._wires:
                self._wires[host].send(message)
        self._wake_later()

    def _wake_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wake_at = self._agreement.wake_at
        if wake_at is not None:
            self._timer = self._loop.after(max(0.0, wake_at - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._do(self._agreement.tick(time.monotonic()))

    def _beat(self) -> None:
        timeout, now = self._config.settings.heartbeat_timeout, time.monotonic()
        for host, wire in list(self._wires.items()):
            silent = now - self._heard_at[host]
            if silent > timeout and not self._pulse.slept(timeout):
                del self._wires[host]
                wire.close()
                self._do(self._agreement.lost(host, f"not heard of for {silent:.0f} s", now))
            else:
                wire.send({"type": "beat"})
        self._loop.after(self._pulse.next(timeout), self._beat)


class OtherHost:
    """A connection to the first host, made anew until the job starts."""

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
            fix=f"look at the log of {self._first}; the settings are join_timeout and control_port",
        )
        self._lost(Failure.from_error(error, self._config.current_host, time=time.time()))

    def _lost(self, failure: Failure) -> None:
        if not self._over:
            self._over = True
            self.on_lost(failure)


class Pulse:
    """The rhythm of heartbeats, and whether it was us who missed some: a paused container must not blame the others."""

    def __init__(self) -> None:
        self._next_at = time.monotonic()

    def next(self, timeout: float) -> float:
        self._next_at = time.monotonic() + timeout / 6
        return timeout / 6

    def slept(self, timeout: float) -> bool:
        return time.monotonic() - self._next_at > timeout / 3


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
