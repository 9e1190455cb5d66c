"""Servers as processes: ours and the peers', each in a session of its own, asleep while it is another's turn."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.harness import PROGRAMS, ROOT, PeerFailed, environment
from bench.serving_load import Address, http_request

READY = 120.0
"""Seconds that a server may take until it answers."""


class Server:
    """One command that listens on `port` of loopback. log: what it printed, both streams."""

    def __init__(
        self, name: str, command: Sequence[str | Path], *, folder: Path, port: int, env: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.address = name, ("127.0.0.1", port)
        self.log = folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=environment(**(env or {})),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, path: str, *, timeout: float = READY) -> None:
        """Until a GET of `path` is answered 200. Raises PeerFailed when it ends, or takes longer."""
        deadline = time.monotonic() + timeout
        while status(self.address, http_request(path, connection="close")) != 200:
            if self.process.poll() is not None:
                raise self.failed(f"exited {self.process.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise self.failed(f"was not ready after {timeout:.0f} s")
            time.sleep(0.01)

    def failed(self, how: str) -> PeerFailed:
        return PeerFailed(f"{self.name} {how}:\n{self.log.read_text(errors='replace')[-4000:]}")

    def processes(self) -> list[int]:
        """The command and all that descend from it."""
        found = [self.process.pid]
        for pid in found:
            found += children(pid)
        return found

    def sleep(self) -> None:
        """It gets no time until `wake`."""
        self._signal_all(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def memory(self) -> float:
        """Megabytes (PSS) of all its processes: what they share counts once."""
        return sum(map(_pss, self.processes())) / 1024

    def end(self) -> None:
        """Kill it with all that descends from it: what it was started for is measured."""
        self._signal_all(signal.SIGKILL)
        self.process.wait()


def children(pid: int) -> list[int]:
    """The processes that any thread of `pid` has started and that are still there."""
    with contextlib.suppress(OSError):
        files = sorted(Path(f"/proc/{pid}/task").glob("*/children"))
        return [int(child) for file in files for child in file.read_text(encoding="ascii").split()]
    return []


def _pss(pid: int) -> int:
    """Kilobytes; 0 of a process that is gone."""
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"), re.M)
        return int(found[1]) if found else 0
    return 0


def status(address: Address, request: bytes, *, timeout: float = 5.0) -> int:
    """Of the answer to one request; 0 when there is none."""
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=timeout) as connection:
        connection.sendall(request)
        found = re.match(rb"HTTP/1\.[01] (\d{3}) ", connection.recv(64))
        return int(found[1]) if found else 0
    return 0


def port() -> int:
    """A free one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def moorage(program: str, *, folder: Path, name: str = "moorage", **settings: object) -> Iterator[Server]:
    """`serve` with programs/<program>.py as the model's inference.py, ready. settings: such as max_batch_size=32."""
    code = folder / name.replace(" ", "-") / "model" / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text((PROGRAMS / f"{program}.py").read_text())
    listen = port()
    env = {
        "SAGEMAKER_BASE_DIR": str(code.parent.parent),
        "SAGEMAKER_BIND_TO_PORT": str(listen),
        "MOORAGE_METRICS_PORT": "0",
        **{f"MOORAGE_{key.upper()}": str(value) for key, value in settings.items()},
    }
    with running(Server(name, [sys.executable, ROOT / "serve"], folder=folder, port=listen, env=env)) as server:
        yield server


@contextlib.contextmanager
def running(server: Server, *, ready: str = "/ping") -> Iterator[Server]:
    """`server` until the block is left. ready: what it answers 200 once it is."""
    try:
        server.wait_until(ready)
        yield server
    finally:
        server.end()
