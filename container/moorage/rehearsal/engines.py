"""What runs the hosts: containers, or processes. Both look the same from here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from moorage.rehearsal.hosts import HostPlan
from moorage.rehearsal.job import Job

Stream = Literal["stdout", "stderr"]
Said = Callable[[str, Stream, str], None]
"""host, stream, line without its newline."""

KILLED = 137
_LONGEST = 2**16


class Host(Protocol):
    """One host of one attempt. What is asked of one that has ended does nothing."""

    name: str

    @property
    def code(self) -> int | None:
        """Its exit code when it has ended and all it said was told; 128 + n where signal n ended it.

        Raises EngineError where the engine is lost.
        """

    @property
    def memory_ran_out(self) -> bool: ...

    def signal(self, number: int) -> None: ...

    def kill_rank(self, local_rank: int) -> bool:
        """False where there is no such rank."""

    def freeze(self, on: bool) -> None: ...

    def slow(self, on: bool) -> None:
        """Leave it about a tenth of a core."""

    def cut_network(self, on: bool) -> None: ...


class Engine(Protocol):
    def prepare(self) -> None:
        """Once. Raises EngineError where the job cannot be started here."""

    def environment(self) -> Mapping[str, str]:
        """That every host of the next attempt needs."""

    def create(self, plans: Sequence[HostPlan]) -> None:
        """All hosts of an attempt, not yet started. Raises EngineError."""

    def start(self, said: Said) -> dict[str, Host]:
        """Those that were created, by name. Raises EngineError."""

    def remove(self) -> None:
        """All that is there of the attempt's hosts, at once."""

    def own(self, folder: Path) -> None:
        """Files that hosts wrote become the caller's."""

    def close(self) -> None: ...


class Lines:
    """Whole lines of one stream, as they come."""

    def __init__(self, host: str, stream: Stream, said: Said) -> None:
        self._host, self._stream, self._said, self._rest = host, stream, said, b""

    def add(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._say(line)
        if len(self._rest) > _LONGEST:
            self.end()

    def end(self) -> None:
        if self._rest:
            self._say(self._rest)
        self._rest = b""

    def _say(self, line: bytes) -> None:
        self._said(self._host, self._stream, line.decode("utf-8", "replace").rstrip("\r"))


def threads(job: Job) -> dict[str, str]:
    """Several hosts share one machine's cores, and none knows of the others."""
    if job.hosts == 1 or "OMP_NUM_THREADS" in job.env:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (job.hosts * (job.ranks_per_host or 1))))}
