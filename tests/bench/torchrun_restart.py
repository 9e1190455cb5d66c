"""One rank of four is killed: does the job train again? torchrun's in-job restart beside `train`'s.

    python tests/bench/torchrun_restart.py [--tries 4] [--deadline 60] [--kill rank|host] [--survivors fail|wait]
        [--hosts loopback|namespaces] [--launchers torchrun-static torchrun-c10d torchrun-c10d-own-store train]

Two hosts of two ranks each (gloo on the CPU) all-reduce in a loop; one rank gets SIGKILL, each of the four in turn, or
one host does, with all its processes. A try is *recovered* when all four global ranks have made 5 steps in new
processes, *ended* when every launcher left has exited without that, and *hung* when neither came before the deadline.

Survivors of the killed rank fail at once, as gloo has it, or wait for ever, as a rank in an NCCL collective does until
its watchdog ends it. Hosts are loopback addresses, or network namespaces joined by a cable (root and iproute2 needed):
there each host has an interface and an address of its own, as in containers. Only processes and namespaces made here
are ended. The findings are in docs/decisions/0001-supervisor-instead-of-torchrun.md.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve()
TRAIN = HERE.parents[2] / "train"
RANKS_PER_HOST, WORLD_SIZE, RESTARTS, STEPS = 2, 4, 2, 5
START_DEADLINE = 120.0
PR_SET_CHILD_SUBREAPER = 36


def program(reports: Path, survivors: str) -> None:
    """What a rank runs: all-reduce for ever, and report each step on a line of its own."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    with (reports / str(os.getpid())).open("w", buffering=1) as report:
        for step in range(1_000_000):
            one = torch.ones(1)
            try:
                dist.all_reduce(one)
            except RuntimeError:
                if survivors == "wait":
                    time.sleep(3600)
                raise
            assert int(one) == WORLD_SIZE
            report.write(f"{dist.get_rank()} {step}\n")
            time.sleep(0.05)


@dataclass(frozen=True, kw_only=True)
class Host:
    """address: its name, too. prefix: what enters the namespace."""

    address: str
    interface: str
    prefix: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """port: free, for the rendezvous or the control channel. folder: of this try alone."""

    hosts: Sequence[Host]
    port: int
    folder: Path
    survivors: str

    @property
    def reports(self) -> Path:
        return self.folder / "reports"

    @property
    def program(self) -> list[str]:
        return [str(HERE), "--program", str(self.reports), "--survivors", self.survivors]


@dataclass(frozen=True, kw_only=True)
class Try:
    """started: seconds from the launch to the first steps. seconds: from the kill to the outcome."""

    launcher: str
    killed: int
    outcome: str
    started: float = 0.0
    seconds: float = 0.0


Command = tuple[list[str], dict[str, str]]
"""argv, and what is added to the environment."""


def torchrun_static(job: Job, index: int) -> Command:
    master = ["--master-addr", job.hosts[0].address, "--master-port", str(job.port)]
    return _torchrun(job, index, [*master, "--node-rank", str(index)])


def torchrun_c10d(job: Job, index: int) -> Command:
    endpoint = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{job.hosts[0].address}:{job.port}", "--rdzv-id", "job"]
    # Without these two it is worse: no restart at all, or hung from the start.
    told = ["--rdzv-conf", f"is_host={int(index == 0)}", "--local-addr", job.hosts[index].address]
    return _torchrun(job, index, [*endpoint, *told])


def torchrun_c10d_own(job: Job, index: int) -> Command:
    # The agents' store is made once and keeps the addresses of the ranks that died; this gives each attempt a new one.
    argv, env = torchrun_c10d(job, index)
    return argv, {**env, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def _torchrun(job: Job, index: int, rendezvous: list[str]) -> Command:
    shape = ["--nnodes", "2", "--nproc-per-node", str(RANKS_PER_HOST), "--max-restarts", str(RESTARTS)]
    run = [sys.executable, "-m", "torch.distributed.run", *shape, *rendezvous, *job.program]
    return run, {"GLOO_SOCKET_IFNAME": job.hosts[index].interface}


def moorage_train(job: Job, index: int) -> Command:
    base = job.folder / str(index)
    config = base / "input" / "config"
    config.mkdir(parents=True)
    resource = {
        "current_host": job.hosts[index].address,
        "hosts": [host.address for host in job.hosts],
        "network_interface_name": job.hosts[index].interface,
    }
    (config / "resourceconfig.json").write_text(json.dumps(resource))
    settings = {"RANKS_PER_HOST": RANKS_PER_HOST, "MAX_RESTARTS": RESTARTS, "CONTROL_PORT": job.port}
    env = {f"MOORAGE_{name}": str(value) for name, value in settings.items()}
    return [sys.executable, str(TRAIN), *job.program], {**env, "SAGEMAKER_BASE_DIR": str(base)}


LAUNCHERS: dict[str, Callable[[Job, int], Command]] = {
    "torchrun-static": torchrun_static,
    "torchrun-c10d": torchrun_c10d,
    "torchrun-c10d-own-store": torchrun_c10d_own,
    "train": moorage_train,
}


def attempt(launcher: str, job: Job, *, kill: str, killed: int, deadline: float, logs: Path) -> Try:
    job.reports.mkdir()
    began = time.monotonic()
    launched: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(len(job.hosts)):
            launched.append(launch(launcher, job, index, logs / f"{launcher}-{kill}{killed}-host{index}.log"))
        if wait(lambda: stepping(job.reports, frozenset()), START_DEADLINE, launched) != "recovered":
            return Try(launcher=launcher, killed=killed, outcome="not started")
        started = time.monotonic() - began
        before = processes(job.reports)
        if kill == "rank":
            os.kill(next(pid for pid, (rank, _step) in before.items() if rank == killed), signal.SIGKILL)
        else:
            kill_host(launched.pop(killed % len(job.hosts)))
        at = time.monotonic()
        outcome = wait(lambda: stepping(job.reports, frozenset(before)), deadline, launched)
        seconds = time.monotonic() - at
        return Try(launcher=launcher, killed=killed, outcome=outcome, started=started, seconds=seconds)
    finally:
        end_descendants()


def launch(launcher: str, job: Job, index: int, log: Path) -> subprocess.Popen[bytes]:
    argv, added = LAUNCHERS[launcher](job, index)
    env = {**os.environ, "OMP_NUM_THREADS": "1", **added}
    with log.open("wb") as out:
        return subprocess.Popen(
            [*job.hosts[index].prefix, *argv], env=env, stdout=out, stderr=out, start_new_session=True
        )


def wait(done: Callable[[], bool], deadline: float, launched: Sequence[subprocess.Popen[bytes]]) -> str:
    until = time.monotonic() + deadline
    while time.monotonic() < until:
        if done():
            return "recovered"
        if all(process.poll() is not None for process in launched):
            return "ended"
        time.sleep(0.02)
    return "hung"


def processes(reports: Path) -> dict[int, tuple[int, int]]:
    """pid -> (global rank, last step), of every process that ever made a step."""
    found = {}
    for path in reports.iterdir():
        whole = path.read_text().rpartition("\n")[0]
        if whole:
            rank, step = whole.rpartition("\n")[2].split()
            found[int(path.name)] = (int(rank), int(step))
    return found


def stepping(reports: Path, before: frozenset[int]) -> bool:
    """Whether every global rank has made its steps in a process that is not in `before`."""
    new = {rank for pid, (rank, step) in processes(reports).items() if pid not in before and step >= STEPS}
    return new == set(range(WORLD_SIZE))


def kill_host(launcher: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the launcher and all below it, parents before children: none can be seen to fail first."""
    tree = [launcher.pid]
    for pid in tree:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            tree += children(pid)
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    launcher.wait()


def children(pid: int) -> list[int]:
    """Of every thread of the process."""
    return [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]


def end_descendants() -> None:
    """SIGKILL to all processes started from here; as a subreaper we are handed those whose parents are gone."""
    while True:
        left = children(os.getpid())
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def free_port(host: Host) -> int:
    with socket.socket() as probe:
        # A namespace's address cannot be bound from outside: a port that is free here is as good as any there.
        probe.bind((host.address if not host.prefix else "127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def loopback() -> Iterator[list[Host]]:
    yield [Host(address=f"127.0.0.{number}", interface="lo") for number in (1, 2)]


@contextlib.contextmanager
def namespaces() -> Iterator[list[Host]]:
    """Two network namespaces, each with its end of a cable as eth0."""
    names = [f"moorage-{os.getpid()}-{number}" for number in (1, 2)]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
        hosts = []
        for number, name in enumerate(names, 1):
            address = f"10.123.0.{number}"
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
            hosts.append(Host(address=address, interface="eth0", prefix=("ip", "netns", "exec", name)))
        yield hosts
    finally:
        for name in made:
            ip("netns", "delete", name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=30)


def report(tries: Sequence[Try], kill: str) -> None:
    print(f"\n{'launcher':<24} {kill} killed: outcome, seconds from the kill")
    for launcher in dict.fromkeys(one.launcher for one in tries):
        own = [one for one in tries if one.launcher == launcher]
        parts = []
        for outcome in dict.fromkeys(one.outcome for one in own):
            times = sorted(one.seconds for one in own if one.outcome == outcome)
            parts.append(f"{outcome} {len(times)} of {len(own)}, {times[0]:.1f} to {times[-1]:.1f} s")
        starts = sorted(one.started for one in own)
        print(f"{launcher:<24} {'; '.join(parts)} (first start {starts[len(starts) // 2]:.1f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=4, help="per launcher (default 4, one for each rank)")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds after the kill (default 60)")
    parser.add_argument("--kill", choices=("rank", "host"), default="rank")
    parser.add_argument("--hosts", choices=("loopback", "namespaces"), default="loopback")
    parser.add_argument("--survivors", choices=("fail", "wait"), default="fail")
    parser.add_argument("--launchers", nargs="+", choices=sorted(LAUNCHERS), default=list(LAUNCHERS))
    parser.add_argument("--logs", type=Path, help="keep what the launchers print in this folder")
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program:
        program(options.program, options.survivors)
        return
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tries = []
    with {"loopback": loopback, "namespaces": namespaces}[options.hosts]() as hosts:
        for launcher in options.launchers:
            for number in range(options.tries):
                with tempfile.TemporaryDirectory(prefix="restart-") as scratch:
                    folder = Path(scratch)
                    job = Job(hosts=hosts, port=free_port(hosts[0]), folder=folder, survivors=options.survivors)
                    one = attempt(
                        launcher,
                        job,
                        kill=options.kill,
                        killed=number % WORLD_SIZE,
                        deadline=options.deadline,
                        logs=options.logs or folder,
                    )
                print(
                    f"{launcher}: {options.kill} {one.killed} killed, {one.outcome} after {one.seconds:.1f} s",
                    flush=True,
                )
                tries.append(one)
    report(tries, options.kill)


if __name__ == "__main__":
    main()
