"""The ranks of this host in one attempt, from their start until the last is gone and its log is written."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from moorage.contract.failure import Failure
from moorage.errors import STOPPED, ProgramError
from moorage.launch.diagnosis import Ending, diagnose
from moorage.launch.loop import Loop
from moorage.launch.plan import LaunchPlan, RankPlan
from moorage.processes.children import kill_children, kill_group, start_process, terminate
from moorage.processes.logs import STDERR, STDOUT, LogPump, Stream

DRAIN = 0.5
"""Seconds that a pipe may stay open after its rank ended: somebody who left the rank's session can hold it."""

GIVE_UP = 2.0
"""Seconds after which a rank counts as ended although its last lines could not be written yet."""

logger = logging.getLogger("moorage")


@dataclass(eq=False, kw_only=True)
class _Rank:
    plan: RankPlan
    pid: int = 0
    streams: tuple[Stream, ...] = ()
    open_streams: int = 0
    status: int | None = None
    killed: bool = False
    dismissed: bool = False
    settled: bool = False


@dataclass(eq=False, kw_only=True)
class Attempt:
    """on_failed: with each rank that ended badly by itself. on_stop: a rank was asked to stop, but not by us.
    on_over: once, with the status of every rank, when all are gone.
    """

    loop: Loop
    pump: LogPump
    plan: LaunchPlan
    on_failed: Callable[[Failure], None]
    on_stop: Callable[[int], None]
    on_over: Callable[[list[int]], None]
    _ranks: list[_Rank] = field(default_factory=list)
    _terminated: bool = False

    def start(self) -> None:
        self._ranks = [_Rank(plan=plan) for plan in self.plan.ranks]
        try:
            _make(self.plan.ranks[0].error_file.parent)
            for rank in self._ranks:
                self._start(rank)
        except ProgramError as error:
            self.kill()
            self.on_failed(Failure.from_error(error, self.plan.host))
            for rank in self._ranks:
                if not rank.pid:
                    rank.status = error.exit_code
                    self._settle(rank)

    def owns(self, pid: int) -> bool:
        return any(rank.pid == pid and rank.status is None for rank in self._ranks)

    def ended(self, pid: int, status: int) -> None:
        """A process was reaped."""
        for rank in self._ranks:
            if rank.pid == pid and rank.status is None:
                rank.status = STOPPED if rank.dismissed and status == -signal.SIGKILL else status
                self.loop.after(DRAIN, lambda rank=rank: self._drop(rank))  # type: ignore[misc]
                self.loop.after(GIVE_UP, lambda rank=rank: self._settle(rank))  # type: ignore[misc]
                self._settle_if_drained(rank)

    def terminate(self) -> None:
        """SIGTERM to every rank that runs."""
        self._terminated = True
        for rank in self._running():
            terminate(rank.pid)

    def kill(self) -> None:
        """SIGKILL to every rank that runs, and all it started. What they say of it is no failure."""
        for rank in self._running():
            rank.killed = True
            kill_group(rank.pid)

    def dismiss(self, ranks: Collection[int]) -> None:
        """SIGKILL to these ranks, by their global numbers: they were stopped, with nothing left to do."""
        for rank in self._running():
            if rank.plan.rank in ranks:
                rank.dismissed = True
                kill_group(rank.pid)

    @property
    def running(self) -> tuple[int, ...]:
        """Global ranks."""
        return tuple(rank.plan.rank for rank in self._running())

    @property
    def over(self) -> bool:
        return all(rank.settled for rank in self._ranks)

    def _running(self) -> list[_Rank]:
        return [rank for rank in self._ranks if rank.pid and rank.status is None]

    def _start(self, rank: _Rank) -> None:
        plan = rank.plan
        process = start_process(plan.argv, env=plan.env, cwd=plan.cwd)
        prefix = b"" if plan.rank == 0 else f"[{self.plan.host}:{plan.rank}] ".encode()
        rank.pid, rank.open_streams = process.pid, 2

        def ended() -> None:  # in the pump's thread
            self.loop.soon(lambda: self._stream_ended(rank))

        rank.streams = tuple(
            self.pump.add(Stream(descriptor=descriptor, target=target, prefix=prefix, on_end=ended))
            for descriptor, target in ((process.stdout, STDOUT), (process.stderr, STDERR))
        )

    def _stream_ended(self, rank: _Rank) -> None:
        rank.open_streams -= 1
        self._settle_if_drained(rank)

    def _settle_if_drained(self, rank: _Rank) -> None:
        if rank.status is not None and rank.open_streams == 0:
            self._settle(rank)

    def _drop(self, rank: _Rank) -> None:
        for stream in rank.streams:
            self.pump.drop(stream)

    def _settle(self, rank: _Rank) -> None:
        if rank.settled or rank.status is None:
            return
        rank.settled = True
        # One that had ended by itself when it was killed has something to say.
        if rank.pid and not (rank.killed and rank.status == -signal.SIGKILL):
            self._judge(rank, rank.status)
        if self.over:
            kill_children()
            self.on_over([rank.status for rank in self._ranks if rank.status is not None])

    def _judge(self, rank: _Rank, status: int) -> None:
        if status == 0 or (self._terminated and status in (STOPPED, -15)):
            return
        if status == STOPPED and not rank.killed:
            self.on_stop(rank.plan.rank)
            return
        stderr = [line.decode("utf-8", "replace") for line in rank.streams[1].tail.copy()]
        ending = Ending(rank=rank.plan.rank, status=status, error_file=rank.plan.error_file, stderr=stderr)
        self.on_failed(diagnose(ending, self.plan.host))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProgramError(f"cannot make the folder {folder} for the ranks", why=str(error.strerror)) from None
