"""A rank's side of bench/turns.py: wait for a turn, say what was measured in it."""

from __future__ import annotations

import os
import socket


class Turns:
    """The conductor at the other end of the socket named by BENCH_TURNS."""

    def __init__(self, rank: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(os.environ["BENCH_TURNS"])
        self._socket.sendall(f"{rank} {os.environ['BENCH_NAME']}\n".encode())

    def wait(self) -> bool:
        """Sleep until the next turn; False when there will be none."""
        return self._socket.recv(16) == b"go\n"

    def report(self, *seconds: float) -> None:
        self._socket.sendall((" ".join(map(str, seconds)) + "\n").encode())
