"""One attempt: the hosts run until they end by themselves, or until somebody ends them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from moorage.rehearsal.agent import Agent
from moorage.rehearsal.breaking import Breaking
from moorage.rehearsal.engines import Host
from moorage.rehearsal.events import Interrupted, Note
from moorage.rehearsal.job import Interruption, Job
from moorage.rehearsal.journal import Journal
from moorage.rehearsal.observer import Observer
from moorage.rehearsal.schedule import Moment, Schedule
from moorage.rehearsal.stopper import Stopper

Why = Literal["finished", "failed", "interruption", "fault", "stop", "max-run", "max-wait"]

_LOOK = 0.02
_LEDGER = 0.5
"""Seconds between two looks at the hosts, and at the ledger."""
LEAVE = 30.0
"""Seconds that the other hosts have to leave by themselves when one has failed; then they are stopped."""


@dataclass(kw_only=True)
class Watched:
    """What came of it. ended: hosts with their exit codes, in the order in which they ended.

    grace_used: seconds from the first SIGTERM to the last end.
    grace_left: seconds of the grace that nobody used.
    """

    why: Why
    ended: dict[str, int] = field(default_factory=dict)
    grace_used: float | None = None
    grace_left: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When an attempt is over whatever it does, by time.monotonic(). began: of the first attempt's training."""

    began: float
    run: float
    wait: float


class Watch:
    """Of one attempt. look: is called now and then to read the ledger."""

    def __init__(
        self,
        *,
        job: Job,
        hosts: Mapping[str, Host],
        agents: Mapping[str, Agent],
        schedule: Schedule,
        breaking: Breaking,
        observer: Observer,
        journal: Journal,
        stop: Stopper,
        limits: Limits,
        look: Callable[[], None],
    ) -> None:
        self._job, self._hosts, self._agents, self._schedule = job, hosts, agents, schedule
        self._breaking, self._observer, self._journal, self._stop = breaking, observer, journal, stop
        self._limits, self._look = limits, look
        self._began = time.monotonic()
        self._looked = 0.0
        self._result = Watched(why="failed")
        self._why: Why | None = None
        self._asked: float | None = None
        self._deadlines: dict[str, float] = {}
        """When a host that was asked to end is killed."""
        self._killed: set[str] = set()
        self._then: float | None = None
        """The grace of the other hosts, while only one is taken."""
        self._failed: float | None = None

    def until_over(self) -> Watched:
        """Raises what an agent or the engine raises."""
        while True:
            now = time.monotonic()
            self._reap(now)
            if len(self._result.ended) == len(self._hosts):
                self._look()
                return self._over(now)
            if now - self._looked > _LEDGER:
                self._looked = now
                self._look()
            self._decide(now)
            self._insist(now)
            time.sleep(_LOOK)

    def _reap(self, now: float) -> None:
        for agent in self._agents.values():
            if agent.error is not None:
                raise agent.error
        for name, host in self._hosts.items():
            if name not in self._result.ended and (code := host.code) is not None:
                self._result.ended[name] = code
                if host.memory_ran_out:
                    text = f"{name} was killed: it used more memory than its limit of {self._job.memory}"
                    self._journal.tell(Note, text=text, level="warning")
                if code and self._failed is None:
                    self._failed = now

    def _decide(self, now: float) -> None:
        if self._stop.hard:
            self._why = self._why or "stop"
            self._take(self._hosts)
            return
        if self._why is not None:
            return
        moment = Moment(
            step=self._observer.step,
            first=self._observer.first,
            job=now - self._limits.began,
            attempt=now - self._began,
        )
        if self._stop.asked:
            self._end("stop", self._job.grace)
        elif now >= self._limits.run:
            self._end("max-run", self._job.grace)
        elif now >= self._limits.wait:
            self._end("max-wait", self._job.grace)
        elif self._failed is not None and now - self._failed > LEAVE:
            self._end("failed", self._job.grace)
        elif not self._result.ended and (due := self._schedule.next(moment)):
            self._interrupt(*due)
        else:
            self._breaking.act(moment, now)

    def _interrupt(self, item: Interruption, reason: str) -> None:
        host = None if item.host is None else self._job.host_named(item.host)
        self._journal.tell(
            Interrupted, number=self._schedule.made, hard=item.hard, host=host, step=self._observer.step, why=reason
        )
        if self._job.sync_stops_at is not None:
            for agent in self._agents.values():
                agent.pause()
        if item.hard:
            self._why = "interruption"
            self._take({host: self._hosts[host]} if host else self._hosts)
        else:
            self._end("interruption", item.grace, host)
        self._then = item.grace if host else None

    def _end(self, why: Why, grace: float, host: str | None = None) -> None:
        """Ask all hosts to end, or one of them."""
        self._why = why
        now = time.monotonic()
        self._asked = now if self._asked is None else self._asked
        for name in [host] if host else list(self._hosts):
            if name not in self._result.ended and name not in self._deadlines:
                self._hosts[name].signal(signal.SIGTERM)
            self._deadlines.setdefault(name, now + grace)

    def _insist(self, now: float) -> None:
        """The grace of some is over, or the one host that was to go first is gone."""
        if self._then is not None and self._result.ended:
            grace, self._then = self._then, None
            self._end("interruption", grace)
        late = [name for name, deadline in self._deadlines.items() if now >= deadline]
        self._kill({name: self._hosts[name] for name in late})

    def _take(self, hosts: Mapping[str, Host]) -> None:
        """Without a word, and their agents with them."""
        for name in hosts:
            if name in self._agents:
                self._agents[name].abandon()
        self._kill(hosts)

    def _kill(self, hosts: Mapping[str, Host]) -> None:
        for name, host in hosts.items():
            if name not in self._result.ended and name not in self._killed:
                self._killed.add(name)
                host.signal(signal.SIGKILL)
                self._breaking.thaw(name)

    def _over(self, now: float) -> Watched:
        result, codes = self._result, self._result.ended.values()
        if not any(codes) and self._why in (None, "interruption", "failed"):
            result.why = "finished"
        elif self._why is not None and self._why != "failed":
            result.why = self._why
        else:
            result.why = "fault" if self._breaking.lost_a_host else "failed"
        if self._asked is not None:
            result.grace_used = now - self._asked
            result.grace_left = max(0.0, max(self._deadlines.values()) - now)
        return result
