"""The door of the control channel on the first host: who may come in.

Whoever connects has a few seconds to say one short line: hello, with the token of this job and the name of one of its
hosts. Everybody else is sent away, and can neither slow the job nor fill its memory.

The token keeps jobs apart that share a network by mistake. It is no secret: hosts of one job trust their network, as
their ranks do.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import selectors
import socket
from collections.abc import Callable, Sequence

from moorage.contract.config import JobConfig
from moorage.errors import ConfigError
from moorage.launch.loop import Loop, Timer
from moorage.launch.wire import LONGEST_LINE, Message, Wire

HELLO_WITHIN = 5.0
LONGEST_HELLO = 4096
STRANGERS = 64
_SAID_ALOUD = 5
"""Strangers that are logged; a port scan must not fill the log."""

logger = logging.getLogger("moorage")


def job_token(config: JobConfig) -> str:
    """The same on all hosts of one job, and on no other job's."""
    told = json.dumps([config.name, config.arn, config.hosts])
    return hashlib.sha256(f"moorage control channel\0{told}".encode()).hexdigest()


def proof(token: str, instance: str) -> str:
    """With which the first host shows a newcomer that it belongs to the same job."""
    return hmac.new(token.encode(), instance.encode(), hashlib.sha256).hexdigest()


class Door:
    """Listens, and hands over the wire of each host that comes in."""

    def __init__(
        self,
        loop: Loop,
        *,
        port: int,
        token: str,
        hosts: Sequence[str],
        admit: Callable[[str, str], str | None],
        on_guest: Callable[[str, Wire], None],
    ) -> None:
        """hosts: that may come in. admit: given a host and its instance, which tells two containers of one name
        apart, says why it may not. Raises ConfigError when the port is taken.
        """
        self._loop, self._token, self._hosts = loop, token, hosts
        self._admit, self._on_guest = admit, on_guest
        self._waiting: dict[Wire, Timer] = {}
        self._said = 0
        try:
            self._listener = socket.create_server(("", port), backlog=STRANGERS + len(hosts))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on port {port}, where the hosts of the job agree",
                why=error.strerror or str(error),
                fix="free the port, or choose another with MOORAGE_CONTROL_PORT on all hosts",
            ) from None
        self._listener.setblocking(False)
        loop.watch(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        self._loop.watch(self._listener, 0, self._accept)
        self._listener.close()
        for wire in list(self._waiting):
            self._forget(wire)
            wire.close()

    def _accept(self, _events: int) -> None:
        try:
            channel, address = self._listener.accept()
        except OSError:  # it went away while it waited
            return
        if len(self._waiting) >= STRANGERS + len(self._hosts):
            # The oldest has had its chance: a host of ours speaks at once.
            self._send_away(next(iter(self._waiting)), "too many connections that say nothing")
        wire = Wire(self._loop, channel, longest_line=LONGEST_HELLO)
        peer = f"{address[0]}:{address[1]}"
        wire.on_message = lambda message: self._hello(wire, message, peer)
        wire.on_closed = lambda reason: self._gone(wire, f"{peer}: {reason}")
        self._waiting[wire] = self._loop.after(
            HELLO_WITHIN, lambda: self._send_away(wire, f"{peer} did not say hello within {HELLO_WITHIN:.0f} s")
        )

    def _hello(self, wire: Wire, message: Message, peer: str) -> None:
        host, instance, token = (str(message.get(key) or "") for key in ("host", "instance", "token"))
        if message["type"] != "hello" or not host or not instance:
            self._send_away(wire, f"{peer} did not say hello")
        elif not hmac.compare_digest(token.encode(), self._token.encode()):
            self.refuse(wire, f"{peer}, which calls itself {host[:64]!r}, belongs to another job", again=True)
        elif host not in self._hosts:
            self.refuse(wire, f"{host[:64]!r} at {peer} is not another host of this job ({', '.join(self._hosts)})")
        elif why := self._admit(host, instance):
            self.refuse(wire, why)
        else:
            self._forget(wire)
            wire.longest_line = LONGEST_LINE
            wire.send({"type": "welcome", "proof": proof(self._token, instance)})
            self._on_guest(host, wire)

    def refuse(self, wire: Wire, why: str, *, again: bool = False) -> None:
        """Say why, then close. again: it may be worth another try."""
        self._log(f"refused a connection: {why}")
        self._forget(wire)
        wire.send({"type": "refused", "why": why, "again": again})
        wire.close(flush=True)

    def _send_away(self, wire: Wire, why: str) -> None:
        self._gone(wire, why)
        wire.close()

    def _gone(self, wire: Wire, why: str) -> None:
        self._forget(wire)
        self._log(f"a stranger at the control port: {why}")

    def _forget(self, wire: Wire) -> None:
        timer = self._waiting.pop(wire, None)
        if timer is not None:
            timer.cancel()

    def _log(self, text: str) -> None:
        self._said += 1
        if self._said <= _SAID_ALOUD:
            logger.warning("%s", text)
        elif self._said == _SAID_ALOUD + 1:
            logger.warning("more strangers come to the control port; they are refused without a word from here on")
