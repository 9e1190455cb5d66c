"""What tests of whole jobs share: folders laid out like /opt/ml, and `train` as a real process on one or several hosts.

Several hosts on one machine are loopback addresses: 127.0.0.1, 127.0.0.2, ... each with a folder of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jobs import Job

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ROOT / "train"

_T = TypeVar("_T")


def wait_until(predicate: Callable[[], _T], *, timeout: float = 10.0, what: str = "it") -> _T:
    """The first true value of `predicate()`. Fails after `timeout` seconds. what: for the message."""
    deadline = time.monotonic() + timeout
    while True:
        if value := predicate():
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout:.0f} s"
        time.sleep(0.01)


def hears_ctrl_c(*argv: str) -> list[str]:
    """`moorage ARGV`. What a shell starts in the background ignores SIGINT, and so would all that it starts."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from moorage.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", program, *argv]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def loopback_hosts(number: int) -> tuple[str, ...]:
    return tuple(f"127.0.0.{index + 1}" for index in range(number))


class JobFolder(Job):
    """The folder of one host of a job, and what the job left in it."""

    def __init__(self, base: Path, *, hosts: Sequence[str] = ("algo-1",), host: str = "") -> None:
        super().__init__(base)
        self.host = host or hosts[0]
        resource = {"current_host": self.host, "hosts": list(hosts), "network_interface_name": "lo"}
        self.write("resourceconfig", resource)

    @property
    def failure(self) -> Path:
        return self.base / "output" / "failure"

    @property
    def checkpoints(self) -> Path:
        return self.base / "checkpoints"

    @property
    def model(self) -> Path:
        return self.base / "model"

    def ledger(self) -> list[dict[str, Any]]:
        """The events of every attempt on this host, oldest first."""
        files = sorted((self.checkpoints / "ledger").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def digits(folder: JobFolder, **hyperparameters: str) -> JobFolder:
    """A job folder with the digits as its channel `train`."""
    import numpy as np
    from sklearn.datasets import load_digits

    folder.write("inputdataconfig", {"train": {"TrainingInputMode": "File"}})
    folder.hyperparameters(**{"epochs": "1", "moorage_log_every": "20", **hyperparameters})
    channel = folder.base / "input" / "data" / "train"
    channel.mkdir(parents=True)
    data = load_digits()
    np.savez(channel / "digits.npz", images=data.images.astype("uint8"), labels=data.target.astype("uint8"))
    return folder


@dataclass(kw_only=True)
class HostProcess:
    """`train` on one host, its output collected while it runs."""

    folder: JobFolder
    process: subprocess.Popen[bytes]
    _output: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self._output:
            thread = threading.Thread(target=self._collect, args=(name,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _collect(self, name: str) -> None:
        pipe = getattr(self.process, name)
        while data := os.read(pipe.fileno(), 65536):
            self._output[name] += data
        pipe.close()

    @property
    def host(self) -> str:
        return self.folder.host

    @property
    def stdout(self) -> str:
        return self._output["stdout"].decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self._output["stderr"].decode("utf-8", "replace")

    def lines(self, containing: str = "") -> list[str]:
        """Whole lines of stdout so far."""
        return [line for line in self.stdout.split("\n")[:-1] if containing in line]

    def wait_for(self, text: str, *, times: int = 1, timeout: float = 20.0) -> None:
        """Until `text` was printed, on stdout or stderr, at least so many times."""
        wait_until(
            lambda: (self.stdout + self.stderr).count(text) >= times or self.process.poll() is not None,
            timeout=timeout,
            what=f"{text!r} from {self.host}",
        )
        assert (self.stdout + self.stderr).count(text) >= times, f"{self.host} ended without {text!r}:\n{self.report()}"

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ends(self, timeout: float = 30.0) -> int:
        """Its exit code, when it has ended and all its output is here."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.host} did not end in {timeout:.0f} s:\n{self.report()}") from None
        for thread in self._threads:
            thread.join(5)
        return code

    def report(self) -> str:
        return f"--- {self.host} stdout\n{self.stdout}\n--- {self.host} stderr\n{self.stderr}"

    @property
    def failure(self) -> str | None:
        """What the failure file says; None when there is none."""
        return self.folder.failure.read_text() if self.folder.failure.exists() else None


Start = Callable[..., HostProcess]


@contextlib.contextmanager
def starting() -> Iterator[Start]:
    """A function `start(folder, *args, env=None)` that starts `train ARGS`; what is left of it is killed at the end."""
    running: list[HostProcess] = []

    def start(folder: JobFolder, *args: str, env: Mapping[str, str] | None = None) -> HostProcess:
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *args],
            env={**os.environ, **folder.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        running.append(HostProcess(folder=folder, process=process))
        return running[-1]

    try:
        yield start
    finally:
        for host in running:
            if host.process.poll() is None:
                # Its ranks are killed with it: they are tied to the life of their supervisor.
                host.process.kill()
            host.ends(10)


def job_settings(**given: object) -> dict[str, str]:
    """MOORAGE_* for a quick test: a control port of its own, short deadlines, and what is given on top."""
    settings = {"control_port": free_port(), "heartbeat_timeout": 6, "join_timeout": 20, "grace": 10, **given}
    return {f"MOORAGE_{name.upper()}": str(value) for name, value in settings.items()}


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A real file system of `size`, such as "2m", at `folder`: soon full. Skips the test where it cannot be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_room(folder: Path, size: str) -> None:
    """Let the small disk at `folder` have another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@contextlib.contextmanager
def run_train(
    base: Path,
    program: str = "",
    *,
    hosts: int = 1,
    ranks: int = 1,
    hyperparameters: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    host_env: Mapping[str, Mapping[str, str]] | None = None,
    **settings: object,
) -> Iterator[list[HostProcess]]:
    """A job on `hosts` hosts of `ranks` ranks each; what is left of it is killed at the end.

    program: the text of train.py. The folders are base/<host>: with the same base, and neither program nor
    hyperparameters, the job is started another time. host_env: more environment, by host. settings: such as grace=3.
    """
    names = loopback_hosts(hosts) if hosts > 1 else ("algo-1",)
    env = {**job_settings(ranks_per_host=ranks, **settings), **(env or {})}
    with starting() as start:
        running = []
        for name in names:
            folder = JobFolder(base / name, hosts=names, host=name)
            if program:
                folder.code(train=textwrap.dedent(program))
            if hyperparameters is not None:
                folder.hyperparameters(**hyperparameters)
            running.append(start(folder, env={**env, **(host_env or {}).get(name, {})}))
        yield running
