"""Jobs of the chaos program: started by `train`, interrupted at random, compared with one that was left alone."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from moorage.contract.ledger import read_ledger
from ranks import moments
from support import HostProcess, JobFolder, loopback_hosts, run_train, wait_until

PROGRAM = Path(__file__).with_name("chaos_program.py").read_text(encoding="utf-8")
DEADLINE = 170.0
"""Seconds that a job may take on a machine busy with other things."""

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Note:
    """A step that a rank has done. pid: of the rank. time: seconds since 1970. indices: of the samples trained on."""

    rank: int
    pid: int
    attempt: int
    time: float
    step: int
    epoch: int
    loss: float
    weight: float
    indices: list[int]


class ChaosJob:
    """A job in folders of its own, started as often as needed. options: hyperparameters of the program."""

    def __init__(self, base: Path, *, strategy: str = "ddp", hosts: int = 1, ranks: int = 2, **options: object) -> None:
        self.base, self.num_hosts, self.ranks, self.strategy, self.options = base, hosts, ranks, strategy, options
        self.steps = int(str(options.get("epochs", 5))) * -(-int(str(options.get("samples", 960))) // 24)
        names = loopback_hosts(hosts) if hosts > 1 else ("algo-1",)
        self.folders = [JobFolder(base / name, hosts=names, host=name) for name in names]

    @contextlib.contextmanager
    def start(
        self, *, host_env: Mapping[str, Mapping[str, str]] | None = None, **settings: object
    ) -> Iterator[list[HostProcess]]:
        """`train` on every host; killed at the end if it still runs. host_env: more environment, by host."""
        given = {"strategy": self.strategy, "checkpoint_steps": 7, **settings}
        with run_train(
            self.base,
            PROGRAM,
            hosts=self.num_hosts,
            ranks=self.ranks,
            hyperparameters={name: str(value) for name, value in self.options.items()}
            | {f"moorage_{name}": str(value) for name, value in given.items()},
            env={"PYTHONPATH": str(Path(__file__).parent.parent)},
            host_env=host_env,
            # Longer than elsewhere: here the machine may be busy with other ranks.
            grace=60,
            heartbeat_timeout=30,
            join_timeout=100,
        ) as hosts:
            yield hosts

    def finishes(self, **given: Any) -> list[HostProcess]:
        """Start it and leave it alone. given: as for `start`."""
        with self.start(**given) as hosts:
            assert [host.ends(DEADLINE) for host in hosts] == [0] * len(hosts), reports(hosts)
        return hosts

    def let_linger(self, where: str, rank: int) -> None:
        """Have a rank linger there until it hears SIGTERM: once, with a line "lingers: <where>" when it does."""
        (moments.marks(self.folders[rank // self.ranks].base) / f"{where}-{rank}").touch()

    def forget_moments(self) -> None:
        """Let none linger any more, and let those to come do so anew."""
        for folder in self.folders:
            shutil.rmtree(moments.marks(folder.base), ignore_errors=True)
            moments.marks(folder.base).mkdir()

    def notes(self) -> list[Note]:
        """Of all ranks and starts, in the order of time."""
        found = [
            Note(rank=int(path.stem.removeprefix("rank-")), **json.loads(line))
            for folder in self.folders
            for path in (folder.base / "notes").glob("rank-*.jsonl")
            for line in _whole_lines(path.read_bytes())
        ]
        return sorted(found, key=lambda note: note.time)

    def events(self, *kinds: str, host: int = 0) -> list[dict[str, Any]]:
        """What the ledger of one host says, oldest first."""
        records = read_ledger(self.folders[host].checkpoints)
        return [event for record in records for event in record.events if event["event"] in kinds]

    def peak(self) -> int:
        """The highest step that any rank has done."""
        return max((note.step for note in self.notes()), default=0)

    def latest(self) -> dict[int, Note]:
        """The last step that each rank has done. Reads little: it is asked again and again while they train."""
        found = {}
        for folder in self.folders:
            for path in (folder.base / "notes").glob("rank-*.jsonl"):
                with path.open("rb") as file:
                    file.seek(max(0, path.stat().st_size - 2000))
                    lines = _whole_lines(file.read())
                if lines:
                    rank = int(path.stem.removeprefix("rank-"))
                    found[rank] = Note(rank=rank, **json.loads(lines[-1]))
        return found

    def weights(self) -> Weights:
        return load_file(self.folders[0].model / "model.safetensors")

    def await_step(self, step: int, hosts: Sequence[HostProcess], *, since: float = 0.0) -> bool:
        """Whether rank 0 came to `step`, and that since then; False when the job was over before."""

        def there() -> bool:
            note = self.latest().get(0)
            return note is not None and note.step >= step and note.time >= since

        wait_until(lambda: there() or is_over(hosts), timeout=DEADLINE, what=f"step {step}")
        return there()

    def check_equal(self, alone: Reference) -> None:
        """Its weights are those of the uninterrupted run, bit for bit."""
        mine = self.weights()
        assert mine.keys() == alone.weights.keys()
        different = [name for name, tensor in mine.items() if not tensor.equal(alone.weights[name])]
        assert not different, f"{different} differ; {self._first_difference(alone)}\n{self._history()}"

    def _first_difference(self, alone: Reference) -> str:
        for note in self.notes():
            if note.loss != alone.losses[note.rank, note.step]:
                at = f"step {note.step} of rank {note.rank} in attempt {note.attempt}"
                return f"first in {at}: loss {note.loss} instead of {alone.losses[note.rank, note.step]}"
        return "the losses of all steps are equal"

    def _history(self) -> str:
        return "\n".join(str(event) for host in range(self.num_hosts) for event in self.events(*STORY, host=host))

    def check_nothing_lost(self) -> None:
        """Every rank did every step once, and each start went on at the step at which the last one stopped."""
        done = Counter((note.rank, note.step) for note in self.notes())
        again = {place: times for place, times in done.items() if times > 1}
        assert not again, f"done more than once, as (rank, step): {again}"
        assert len(done) == self.steps * self.num_hosts * self.ranks
        for host in range(self.num_hosts):
            stopped = 0
            for event in self.events("stopped", "resume", host=host):
                if event["event"] == "resume":
                    assert event["step"] == stopped, self._history()
                else:
                    stopped = event["step"]


def _whole_lines(data: bytes) -> list[bytes]:
    """Without the last one while it is being written: a reader can see the first part of a write."""
    return data.split(b"\n")[:-1]


STORY = ("start", "resume", "failed", "stop", "stopped", "finished", "leave")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A job left alone. losses: by rank and step. own_start: seconds from the start of the ranks to the first step."""

    weights: Weights
    losses: dict[tuple[int, int], float]
    notes: list[Note]
    own_start: float


@functools.cache
def left_alone(*, strategy: str = "ddp", hosts: int = 1, ranks: int = 2, **options: object) -> Reference:
    """The uninterrupted run of a job like that; trained once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        job = ChaosJob(Path(folder), strategy=strategy, hosts=hosts, ranks=ranks, **options)
        job.finishes(checkpoint_steps=0)
        notes = job.notes()
        losses = {(note.rank, note.step): note.loss for note in notes}
        assert set(losses) == {(rank, step) for rank in range(hosts * ranks) for step in range(1, job.steps + 1)}
        started, training = attempt_times(job, 0)
        return Reference(weights=job.weights(), losses=losses, notes=notes, own_start=training - started)


def attempt_times(job: ChaosJob, attempt: int) -> tuple[float, float]:
    """When all hosts had started an attempt, and when all ranks had done a step in it, as time.time().

    Of a job that was started once. Infinite for what never was.
    """
    starts = [event for host in range(job.num_hosts) for event in job.events("start", host=host)]
    first: dict[int, float] = {}
    for note in job.notes():
        if note.attempt == attempt:
            first.setdefault(note.rank, note.time)
    return (
        max(event["time"] for event in starts if event["attempt"] == attempt),
        max(first.values()) if len(first) == job.num_hosts * job.ranks else float("inf"),
    )


def dice(name: str) -> random.Random:
    """Another seed each time; CHAOS_SEED repeats the choices of one, though not the machine's timing."""
    seed = int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000))
    print(f"\n{name}: CHAOS_SEED={seed}")
    return random.Random(f"{name}-{seed}")


def await_random_moment(
    job: ChaosJob,
    hosts: Sequence[HostProcess],
    die: random.Random,
    *,
    steps: range,
    set_up: float = 0.0,
    since: float | None = None,
) -> bool:
    """At one of those steps, somewhere in it; or, where the die says so, within `set_up` seconds from now, while the
    ranks set up. False when the job was over before. since: as for `await_step`, from now on by default.
    """
    if set_up and die.random() < 0.25:
        moment = time.monotonic() + die.uniform(0.0, set_up)
    else:
        if not job.await_step(die.choice(steps), hosts, since=time.time() if since is None else since):
            return False
        moment = time.monotonic() + die.uniform(0.0, 0.02)
    while time.monotonic() < moment and not is_over(hosts):
        time.sleep(0.001)
    return not is_over(hosts)


def is_over(hosts: Sequence[HostProcess]) -> bool:
    return any(host.process.poll() is not None for host in hosts)


def rank_pids(hosts: Sequence[HostProcess]) -> dict[int, int]:
    """The processes of the ranks that run now, by rank."""
    found = {}
    for host in hosts:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children").read_text(encoding="ascii")
            for pid in map(int, children.split()):
                with contextlib.suppress(OSError, StopIteration):
                    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                    rank = next(item for item in environ if item.startswith(b"RANK="))
                    found[int(rank.removeprefix(b"RANK="))] = pid
    return found


def is_gone(pid: int) -> bool:
    """Ended, or nothing but a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def spread_of(seconds: Sequence[float]) -> str:
    return f"median {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s" if seconds else "none"


def reports(hosts: Sequence[HostProcess]) -> str:
    return "\n".join(host.report() for host in hosts)
