"""The control channel: each supervisor's link to what the hosts agree on.

On the first host the agreement is at home, and the link to it is a call; with one host that is all there is. Every
other host has a connection to the first (uplink.py). Both are a `Link`: a supervisor does not know which it has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from moorage.contract.config import JobConfig
from moorage.contract.failure import Failure
from moorage.launch.agreement import Agreement, Send
from moorage.launch.door import Door, job_token
from moorage.launch.loop import Loop, Timer
from moorage.launch.wire import Message, Wire

SAY_EVERY = 10.0
"""Seconds between two lines about a host that is waited for."""

LAST_WORDS = 3.0
"""Seconds that a host stays so that the others hear that it is over, or stopped, those too that have yet to come."""

logger = logging.getLogger("moorage")


class Link(Protocol):
    """on_message: start, stop, end, leave. on_lost: the agreement cannot be reached any more. on_connected: whoever is
    there now has heard nothing of this host.
    """

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
            self._loop.after(SAY_EVERY, self._say_who_is_missing)
        self._do(self._agreement.joined(self._host, time.monotonic()))
        self.on_connected()

    def _say_who_is_missing(self) -> None:
        if absent := self._agreement.absent():
            logger.info("waiting for %s, %.0f s at most in all", ", ".join(absent), self._config.settings.join_timeout)
            self._loop.after(SAY_EVERY, self._say_who_is_missing)

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


class Pulse:
    """The rhythm of heartbeats, and whether it was us who missed some: a paused container must not blame the others."""

    def __init__(self) -> None:
        self._next_at = time.monotonic()

    def next(self, timeout: float) -> float:
        self._next_at = time.monotonic() + timeout / 6
        return timeout / 6

    def slept(self, timeout: float) -> bool:
        return time.monotonic() - self._next_at > timeout / 3
