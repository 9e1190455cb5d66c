"""Contenders that run at once, of which one at a time may work.

Starting a process costs seconds, and a shared machine drifts within them. So every contender is started, does its
set-up, and then waits; the conductor gives each a turn of a second or so, round after round, while the others sleep
in a read. A ratio then compares seconds that lie next to each other.
"""

from __future__ import annotations

import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.harness import PeerFailed, environment

RANKS = 2


class Contender:
    """One command, its log, and the connections of its ranks."""

    def __init__(self, name: str, command: Sequence[str | Path], *, env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name.replace(' ', '-')}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=environment(**env),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.ranks: dict[int, socket.socket] = {}

    def check(self) -> None:
        if self.process.poll() is not None and len(self.ranks) < RANKS:
            raise self.failed(f"exited {self.process.returncode} before its turn")

    def failed(self, how: str) -> PeerFailed:
        return PeerFailed(f"{self.name} {how}:\n{self.log.read_text(errors='replace')[-4000:]}")

    def turn(self, timeout: float) -> tuple[float, ...]:
        """What the ranks measured in one turn, of each figure the slowest rank's."""
        for connection in self.ranks.values():
            connection.sendall(b"go\n")
        answers = [self._answer(connection, timeout) for connection in self.ranks.values()]
        return tuple(map(max, zip(*answers, strict=True)))

    def _answer(self, connection: socket.socket, timeout: float) -> list[float]:
        connection.settimeout(timeout)
        answer = b""
        while not answer.endswith(b"\n"):
            try:
                received = connection.recv(64)
            except TimeoutError:
                raise self.failed(f"did not end its turn in {timeout} s") from None
            if not received:
                raise self.failed("left in the middle of its turn")
            answer += received
        return [float(part) for part in answer.split()]

    def end(self, timeout: float) -> None:
        """Ask it to finish; SIGKILL to its process group when it does not, or never was ready."""
        for connection in self.ranks.values():
            connection.close()
        try:
            self.process.wait(timeout if len(self.ranks) == RANKS else 0)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Conductor:
    """Starts the contenders, waits until all their ranks are ready, and hands out the turns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = folder / "turns"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.address))
        self._listener.listen()
        self.contenders: dict[str, Contender] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for contender in self.contenders.values():
            # In the middle of a turn it has to end that first.
            contender.end(timeout=30 if error is None else 10)
        self._listener.close()

    def start(self, name: str, command: Sequence[str | Path], **env: str) -> None:
        env |= {"BENCH_TURNS": str(self.address), "BENCH_NAME": name}
        self.contenders[name] = Contender(name, command, env=env, folder=self.folder)

    def wait_until_ready(self, timeout: float) -> None:
        """Raises PeerFailed when a contender ends, or is not ready in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while late := [c for c in self.contenders.values() if len(c.ranks) < RANKS]:
                if time.monotonic() > deadline:
                    raise late[0].failed(f"was not ready after {timeout} s")
                for contender in late:
                    contender.check()
                if selector.select(0.2):
                    self._admit(self._listener.accept()[0])

    def _admit(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        rank, _, name = connection.makefile().readline().strip().partition(" ")
        self.contenders[name].ranks[int(rank)] = connection

    def rounds(self, num: int, *, timeout: float) -> dict[str, list[tuple[float, ...]]]:
        """What each contender measured in each round, after one round that only warms up.

        The order is drawn anew each round: whose turn came before can matter.
        """
        values: dict[str, list[tuple[float, ...]]] = {name: [] for name in self.contenders}
        for number in range(num + 1):
            for name in random.sample(list(self.contenders), len(self.contenders)):
                measured = self.contenders[name].turn(timeout)
                if number:
                    values[name].append(measured)
            shown = "  ".join(f"{name} {value[-1][0]:.3f}" for name, value in values.items() if value)
            print(f"  round {number}/{num}  {shown}", file=sys.stderr, flush=True)
        return values
