"""`serve` as a real process on a free port of this machine, its log collected, and a client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import ROOT, free_port, wait_until

SERVE = ROOT / "serve"


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(kw_only=True)
class Server:
    """It is killed at the end, with whatever it has started."""

    process: subprocess.Popen[bytes]
    port: int
    _log: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._reading = threading.Thread(target=self._collect, daemon=True)
        self._reading.start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 65536):
            self._log += data
        self.process.stdout.close()

    @property
    def log(self) -> str:
        return self._log.decode("utf-8", "replace")

    def wait_for(self, text: str, *, times: int = 1, timeout: float = 30.0) -> None:
        wait_until(
            lambda: self.log.count(text) >= times or self.process.poll() is not None, timeout=timeout, what=repr(text)
        )
        assert self.log.count(text) >= times, f"it ended without {text!r}:\n{self.log}"

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        def is_over() -> bool:
            return self.process.poll() is not None or self.ping() == 200

        wait_until(is_over, timeout=timeout, what="/ping")
        assert self.process.poll() is None, self.log

    def ping(self) -> int:
        """0 where nobody listens."""
        try:
            return self.ask("/ping", method="GET").status
        except OSError:
            return 0

    def ask(
        self, path: str = "/invocations", body: bytes | str | None = None, *, method: str = "POST", timeout: float = 30,
        **headers: str,
    ) -> Reply:  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Reply(status=response.status, headers=dict(response.headers), body=response.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    @property
    def models(self) -> list[int]:
        """The pids of its model processes."""
        try:
            path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            return [int(pid) for pid in path.read_text().split()]
        except FileNotFoundError:
            return []

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ends(self, timeout: float = 35.0) -> int:
        """The exit code."""
        code = self.process.wait(timeout)
        self._reading.join(5)
        return code

    def rss(self) -> int:
        """Bytes of memory of the front, what it shares with model processes included."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def serving(
    model: Path, *, ready: bool = True, env: Mapping[str, str] | None = None, **settings: Any
) -> Iterator[Server]:
    """settings: MOORAGE_* by their names in small letters."""
    port = free_port()
    given = {f"MOORAGE_{name.upper()}": str(value) for name, value in {"metrics_port": 0, **settings}.items()}
    process = subprocess.Popen(
        [sys.executable, str(SERVE), str(model)],
        env={**os.environ, "SAGEMAKER_BIND_TO_PORT": str(port), **given, **(env or {})},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    server = Server(process=process, port=port)
    try:
        if ready:
            server.wait_until_ready()
        yield server
    finally:
        models = server.models
        process.kill()  # its model processes die with it
        process.wait()
        for pid in models:
            wait_until(lambda pid=pid: not Path(f"/proc/{pid}/task").exists(), what="the end of a model process")  # type: ignore[misc]


def handlers(folder: Path, code: str) -> Path:
    """A model folder whose code/inference.py is `code`."""
    (folder / "code").mkdir(parents=True, exist_ok=True)
    (folder / "code" / "inference.py").write_text(code)
    return folder
