"""Hosts as plain processes on this machine, where there is no image or no engine.

They are loopback addresses, share its cores, disk and network, and see its files: what only a container has is not
rehearsed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from moorage.errors import EngineError
from moorage.rehearsal.engines import Host, Lines, Said, Stream, threads
from moorage.rehearsal.hosts import HostPlan
from moorage.rehearsal.job import Job

_TRAIN = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
from moorage.launch.main import main
sys.exit(main(sys.argv[1:], os.environ.copy()))
"""
# As the file `train` has it: a stop that comes while it starts must wait until somebody listens.

_OF_A_JOB = ("SM_", "SAGEMAKER_", "MOORAGE_", "TORCHELASTIC_", "GROUP_", "ROLE_", "MASTER_", "LOCAL_")
_BEAT = 0.1
"""Seconds that a slow host may run; it then sleeps nine of them."""


class ProcessEngine:
    """begun: is told the number of each process, so that leftovers can be found."""

    def __init__(self, job: Job, env: Mapping[str, str], begun: Callable[[int], None] = lambda number: None) -> None:
        self._job, self._begun = job, begun
        self._env = {name: value for name, value in env.items() if not name.startswith(_OF_A_JOB)}
        self._plans: Sequence[HostPlan] = ()
        self._hosts: list[ProcessHost] = []

    def prepare(self) -> None:
        asked = {"gpus": self._job.gpus, "shm_size": self._job.shm_size, "memory": self._job.memory}
        for name, value in {**asked, "cpus": self._job.cpus, "platform": self._job.platform}.items():
            if value is not None:
                raise EngineError(
                    f"{name} cannot be limited where hosts are processes", fix="leave it out, or use --engine docker"
                )
        if any(fault.kind == "cut-network" for fault in self._job.faults):
            raise EngineError(
                "cut-network needs a network of the host's own",
                why="hosts that are processes share this machine's",
                fix="use --engine docker",
            )

    def environment(self) -> Mapping[str, str]:
        with socket.socket() as probe:
            probe.bind(("", 0))
            return {"MOORAGE_CONTROL_PORT": str(probe.getsockname()[1]), **threads(self._job)}

    def create(self, plans: Sequence[HostPlan]) -> None:
        self._plans = plans

    def start(self, said: Said) -> dict[str, Host]:
        for plan in self._plans:
            self._hosts.append(ProcessHost(plan, self._started(plan), said))
            self._begun(self._hosts[-1].number)
        return {host.name: host for host in self._hosts}

    def _started(self, plan: HostPlan) -> subprocess.Popen[bytes]:
        home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (self._env.get("PYTHONPATH"), home)))
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _TRAIN, *plan.command[1:]],
            env={**self._env, "PYTHONPATH": path, **plan.env, "SAGEMAKER_BASE_DIR": str(plan.ml)},
            cwd=plan.ml,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def remove(self) -> None:
        for host in self._hosts:
            host.remove()
        self._hosts = []

    def own(self, folder: Path) -> None:
        """They are."""

    def close(self) -> None:
        self.remove()


class ProcessHost:
    memory_ran_out = False

    def __init__(self, plan: HostPlan, process: subprocess.Popen[bytes], said: Said) -> None:
        self.name, self._process = plan.name, process
        self._slow: threading.Event | None = None
        self._threads = [
            threading.Thread(target=self._follow, args=(stream, said), name=f"{plan.name}-{stream}", daemon=True)
            for stream in ("stdout", "stderr")
        ]
        for thread in self._threads:
            thread.start()

    @property
    def number(self) -> int:
        return self._process.pid

    def _follow(self, stream: Stream, said: Said) -> None:
        lines, pipe = Lines(self.name, stream, said), getattr(self._process, stream)
        with pipe:
            while data := pipe.read(65536):
                lines.add(data)
        lines.end()

    @property
    def code(self) -> int | None:
        code = self._process.poll()
        if code is None:
            return None
        for thread in self._threads:
            thread.join(2)  # a process that outlives its host can hold the pipe open
        return code if code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            # Ranks are tied to their supervisor's life, but not what they started.
            self._signal_all(number)
        elif self._process.poll() is None:
            self._process.send_signal(number)

    def _signal_all(self, number: int) -> None:
        if self._process.poll() is None:
            for process in [self.number, *_below(self.number)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)

    def kill_rank(self, local_rank: int) -> bool:
        wanted = f"LOCAL_RANK={local_rank}".encode()
        for process in sorted(_below(self.number)):
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                    os.kill(process, signal.SIGKILL)
                    return True
        return False

    def freeze(self, on: bool) -> None:
        self._signal_all(signal.SIGSTOP if on else signal.SIGCONT)

    def slow(self, on: bool) -> None:
        if self._slow is not None:
            self._slow.set()
            self._slow = None
        if on:
            self._slow = threading.Event()
            threading.Thread(target=self._crawl, args=(self._slow,), daemon=True).start()

    def _crawl(self, over: threading.Event) -> None:
        while not over.wait(_BEAT) and self._process.poll() is None:
            self._signal_all(signal.SIGSTOP)
            over.wait(9 * _BEAT)
            self._signal_all(signal.SIGCONT)

    def cut_network(self, on: bool) -> None:
        raise EngineError("cut-network needs a network of the host's own", fix="use --engine docker")

    def remove(self) -> None:
        self.slow(False)
        self._signal_all(signal.SIGKILL)
        self._process.wait()
        for thread in self._threads:
            thread.join(2)


def _below(number: int) -> Iterator[int]:
    """The processes that this one started, and those that they did, as long as their parents live."""
    for path in Path("/proc").glob(f"{number}/task/*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text(encoding="ascii").split()):
                yield child
                yield from _below(child)
