"""What an attempt's hosts stand on: their folders, and all that works on these from outside."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from moorage.rehearsal import hosts, runs
from moorage.rehearsal.agent import Agent, Pace
from moorage.rehearsal.channels import Pipe
from moorage.rehearsal.disks import Disk
from moorage.rehearsal.events import Copied, Synced
from moorage.rehearsal.hosts import HostPlan
from moorage.rehearsal.job import Job
from moorage.rehearsal.journal import Journal
from moorage.rehearsal.observer import ledger_files
from moorage.rehearsal.prefix import Prefix

FLUSH = 300.0
"""Seconds that agents have at the end of a job to bring up what is left. The platform promises none."""


class Stage:
    """Of one attempt, for a `with` block; behind it nothing is left."""

    def __init__(self, job: Job, number: int, plans: Sequence[HostPlan], prefix: Prefix, journal: Journal) -> None:
        self.plans, self.number = tuple(plans), number
        self._job, self._journal = job, journal
        self._home = self.plans[0].ml.parent.parent
        self.agents = {
            plan.name: Agent(
                plan.name,
                plan.checkpoints,
                prefix,
                pace=Pace(delay=job.sync_delay, bandwidth=job.sync_bandwidth),
                seed=f"{job.seed}-{number}-{plan.name}",
                told=self._synced,
            )
            for plan in plans
            if plan.checkpoints is not None
        }
        self.disks: dict[str, Disk] = {}
        self._pipes: list[Pipe] = []
        self.ledger_before: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        """Lay out, and download data and checkpoints."""
        runs.remove_tree(self._home)
        with contextlib.ExitStack() as failing:
            failing.callback(self._clear)
            self._lay_out()
            failing.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._clear()

    def _clear(self) -> None:
        workers: tuple[Pipe | Agent, ...] = (*self._pipes, *self.agents.values())
        for worker in workers:
            worker.close()
        for disk in self.disks.values():
            disk.close()
        runs.remove_tree(self._home)

    def _lay_out(self) -> None:
        full = {self._job.host_named(fault.host) for fault in self._job.faults if fault.kind == "fill-disk"}
        for plan in self.plans:
            if plan.name in full:
                self.disks[plan.name] = Disk(plan.ml)
            self._pipes += hosts.lay_out(self._job, plan, self._copied(plan.name))
        with ThreadPoolExecutor(len(self.plans)) as pool:
            list(pool.map(Agent.restore, self.agents.values()))
        self.ledger_before = frozenset().union(*(ledger_files(folder) for folder in self.checkpoints()))

    def checkpoints(self) -> list[Path]:
        """Where hosts may keep a ledger: a trial of a tuning job keeps to a folder of its own name."""
        below = ("", self._job.name) if self._job.client == "tuning" else ("",)
        return [plan.checkpoints / name for plan in self.plans if plan.checkpoints is not None for name in below]

    def start(self) -> None:
        workers: tuple[Pipe | Agent, ...] = (*self._pipes, *self.agents.values())
        for worker in workers:
            worker.start()

    def flush(self, *, interrupted: bool, seconds: float) -> None:
        """The hosts are gone: what comes up still. seconds: that are left of the grace, for a host that was taken."""
        stops_at = self._job.sync_stops_at

        def bring(agent: Agent) -> None:
            if not interrupted:
                agent.finish(FLUSH)
            elif stops_at is None:
                agent.finish(seconds)
            else:
                chance = random.Random(f"cut-{self._job.seed}-{self.number}-{agent.host}")
                agent.cut(chance.random() if stops_at == "random" else stops_at)

        if self.agents:
            with ThreadPoolExecutor(len(self.agents)) as pool:
                list(pool.map(bring, self.agents.values()))

    def abandon(self) -> None:
        for agent in self.agents.values():
            agent.abandon()

    def _synced(self, host: str, action: str, file: str, size: int, seconds: float) -> None:
        self._journal.tell(Synced, host=host, action=action, file=file, bytes=size, seconds=round(seconds, 4))

    def _copied(self, host: str) -> Callable[[int, int], None]:
        told = -math.inf

        def tell(done: int, total: int) -> None:
            nonlocal told
            if done == total or done - told >= total / 20:
                told = done
                self._journal.tell(Copied, what=f"data to {host}", done=done, total=total)

        return tell
