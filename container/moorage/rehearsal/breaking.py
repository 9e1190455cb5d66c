"""Faults as they are made: something breaks in an attempt, and may be mended."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

from moorage.rehearsal.agent import Agent
from moorage.rehearsal.disks import Disk
from moorage.rehearsal.engines import Host
from moorage.rehearsal.events import Faulted, Note
from moorage.rehearsal.job import Fault, Job
from moorage.rehearsal.journal import Journal
from moorage.rehearsal.schedule import Faults, Moment

MACHINES = ("kill-host", "freeze", "cut-network")
"""Faults of an instance: the platform calls what follows an InternalServerError, and RetryStrategy starts it again."""


class Breaking:
    """Of one attempt. faults: those of the job that are still to be made."""

    def __init__(
        self,
        *,
        job: Job,
        faults: Faults,
        hosts: Mapping[str, Host],
        agents: Mapping[str, Agent],
        disks: Mapping[str, Disk],
        journal: Journal,
    ) -> None:
        self._job, self._faults, self._hosts, self._agents, self._disks = job, faults, hosts, agents, disks
        self._journal = journal
        self._lasting: list[tuple[float, Fault, str]] = []
        self._frozen: set[str] = set()
        self.lost_a_host = False

    def act(self, moment: Moment, now: float) -> None:
        """now: by time.monotonic()."""
        for fault in self._faults.due(moment):
            self._make(fault, moment.step, now)
        for lasting in [entry for entry in self._lasting if now >= entry[0]]:
            self._lasting.remove(lasting)
            _, fault, host = lasting
            self._switch(fault, host, False)
            self._journal.tell(Faulted, kind=fault.kind, host=host, step=moment.step, over=True)

    def thaw(self, host: str) -> None:
        """A frozen one does not even die."""
        if host in self._frozen:
            self._frozen.discard(host)
            self._hosts[host].freeze(False)

    def _make(self, fault: Fault, step: int | None, now: float) -> None:
        host = self._job.host_named(fault.host)
        self._journal.tell(Faulted, kind=fault.kind, host=host, step=step)
        self.lost_a_host = self.lost_a_host or fault.kind in MACHINES
        if fault.kind == "kill-host":
            if host in self._agents:
                self._agents[host].abandon()
            self._hosts[host].signal(signal.SIGKILL)
        elif fault.kind == "kill-rank":
            if not self._hosts[host].kill_rank(fault.rank):
                text = f"kill-rank: {host} has no process with LOCAL_RANK={fault.rank}"
                self._journal.tell(Note, text=text, level="warning")
        else:
            self._switch(fault, host, True)
            if fault.duration:
                self._lasting.append((now + fault.duration, fault, host))

    def _switch(self, fault: Fault, host: str, on: bool) -> None:
        switches: dict[str, Callable[[bool], None]] = {
            "cut-network": self._hosts[host].cut_network,
            "slow-host": self._hosts[host].slow,
            "freeze": self._hosts[host].freeze,
        }
        if fault.kind == "fill-disk":
            self._disks[host].fill(on)
        else:
            switches[fault.kind](on)
        if fault.kind == "freeze":
            (self._frozen.add if on else self._frozen.discard)(host)
