"""What the hosts agree on: one pure state machine on the first host. Messages in, messages out; it knows no sockets.

| state | left when | for |
|---|---|---|
| JOINING | every host is ready | RUNNING, by `start` to all |
| RUNNING | a rank failed, or a host was lost | ENDING, by `end` to all |
| RUNNING | a stop was asked of one | STOPPING, by `stop` to all |
| RUNNING | every rank of every host ended with 0 | LEAVING |
| ENDING | every host is down | RUNNING again, or LEAVING |
| STOPPING | every host is down | LEAVING |
| LEAVING | | every host got the same `leave`: exit code and root cause |

From a host: ready, failed, down, stop. To a host: start, stop, end, failed (the attempt, for the ledger), leave.
While ranks run there is the watch over them beside it, with messages of its own (watch.py).
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from moorage.contract.failure import Failure
from moorage.contract.settings import Settings
from moorage.errors import STOPPED
from moorage.launch.absence import different_code, lost_host, never_came, not_down
from moorage.launch.restart import Restarts, Streak
from moorage.launch.watch import Watch
from moorage.launch.wire import Message

WINDOW = 2.0
"""Seconds in which the failures of all ranks are gathered while the first looks like another's effect."""

REJOIN = 8.0
"""Seconds that a host whose connection broke before the start has to come back."""

LINGER = 30.0
"""Seconds that a failure before the start waits for hosts that are still to come, so that they hear of it."""

END_LIMIT = 30.0
"""Seconds from SIGKILL to a host without ranks; longer is a process stuck in the kernel."""

LEAVE_MARGIN = 5.0

TERMINATED = (STOPPED, -15)

logger = logging.getLogger("moorage")

Send = tuple[str, Message]


class State(enum.Enum):
    JOINING = enum.auto()
    RUNNING = enum.auto()
    ENDING = enum.auto()
    STOPPING = enum.auto()
    LEAVING = enum.auto()


@dataclass
class _Host:
    """What is known of one host."""

    present: bool = False
    lost: bool = False
    ready: bool = False
    fingerprint: str = ""
    ranks: int = 0
    rejoin_by: float | None = None
    codes: list[int] | None = None
    """Of its ranks in this attempt; None while some still run."""


@dataclass(kw_only=True)
class Agreement:
    """hosts: sorted. pick_port: a free port on the first host. Times are those of one monotonic clock, in seconds.

    launch: which start of the job this is, from 1. streak: failures of earlier starts.
    """

    hosts: Sequence[str]
    settings: Settings
    pick_port: Callable[[], int]
    started: float
    launch: int = 1
    streak: Streak = field(default_factory=Streak)
    state: State = State.JOINING
    attempt: int = 0
    verdict: Message | None = None
    _known: dict[str, _Host] = field(init=False)
    _watch: Watch = field(init=False)
    _restarts: Restarts = field(init=False)
    _failures: list[Failure] = field(default_factory=list)
    _stopping: bool = False
    _deadline: float | None = None
    _missing: bool = False

    def __post_init__(self) -> None:
        self._known = {host: _Host() for host in self.hosts}
        self._deadline = self.started + self.settings.join_timeout
        self._watch = Watch(self.settings)
        self._restarts = Restarts(self.settings, self.streak)

    # What happens

    def joined(self, host: str, now: float) -> list[Send]:
        self._known[host].present, self._known[host].rejoin_by = True, None
        if self.state is State.LEAVING and self.verdict is not None:
            return [(host, self.verdict)]
        if self._failures and not self.absent():
            return self._leave_with(self._root())
        if self.state is State.JOINING and not self._failures and not self.absent():
            self._deadline = None  # what a host prepares may take its time
        return []

    def heard(self, host: str, message: Message, now: float) -> list[Send]:
        """Raises KeyError, TypeError or ValueError for a message that no supervisor sends."""
        known, kind = self._known[host], message["type"]
        if self.state is State.LEAVING or known.lost:
            return []
        if kind == "stop":
            return self._stop_asked(host, now)
        if kind == "ready":
            known.ready, known.fingerprint, known.ranks = True, str(message["fingerprint"]), int(message["ranks"])
            return self._start_when_ready()
        if kind == "failed":
            failure = Failure.from_json(message["failure"])
            return self._failed(failure, now) if message["attempt"] in (self.attempt, None) else []
        if kind == "down" and message["attempt"] == self.attempt:
            known.codes = [int(code) for code in message["codes"]]
            self._restarts.came_to(message.get("step"), saved=bool(message.get("saved")))
            return self._down(now)
        if kind in ("pulse", "looked") and message["attempt"] == self.attempt and self.state is State.RUNNING:
            return self._watched(self._watch.heard(host, message, now), now)
        return []

    def disconnected(self, host: str, why: str, now: float) -> list[Send]:
        """Before the start it may come back; after it, it is lost."""
        if self.state is State.LEAVING:
            return []
        if self.state is not State.JOINING:
            return self.lost(host, why, now)
        known = self._known[host]
        known.present, known.ready, known.rejoin_by = False, False, now + REJOIN
        return []

    def lost(self, host: str, why: str, now: float) -> list[Send]:
        known = self._known[host]
        if self.state is State.LEAVING or known.lost:
            return []
        done = known.codes is not None
        known.lost, known.present = True, False
        if known.codes is None:
            known.codes = []
        if self.state is State.STOPPING and done:
            return self._down(now)
        return self._failed(lost_host(host, why), now)

    def tick(self, now: float) -> list[Send]:
        """At `wake_at`, or any time."""
        for host, known in self._known.items():
            if known.rejoin_by is not None and now >= known.rejoin_by and not known.lost:
                return self.lost(host, f"it left before the start and did not come back in {REJOIN:.0f} s", now)
        if self.state is State.RUNNING and (sends := self._watched(self._watch.tick(now), now)):
            return sends
        if self._deadline is None or now < self._deadline:
            return []
        self._deadline = None
        if self.state is State.JOINING:
            absent = never_came(self.absent(), self.hosts, self.settings.join_timeout)
            return self._leave_with(self._root() if self._failures else absent)
        if self.state is State.RUNNING:
            return self._end(now)
        if self.state in (State.ENDING, State.STOPPING):
            stuck = [host for host, known in self._known.items() if known.codes is None]
            return self._leave_with(self._root() if self._failures else not_down(stuck, self.hosts[0]))
        return []

    @property
    def wake_at(self) -> float | None:
        times = [known.rejoin_by for known in self._known.values() if known.rejoin_by is not None and not known.lost]
        watch = self._watch.wake_at if self.state is State.RUNNING else None
        return min([*times, *(at for at in (self._deadline, watch) if at is not None)], default=None)

    # What follows

    def _start_when_ready(self) -> list[Send]:
        if self.state is not State.JOINING or not all(known.ready for known in self._known.values()):
            return []
        first = self.hosts[0]
        for host, known in self._known.items():
            if known.fingerprint != self._known[first].fingerprint:
                ours = self._known[first].fingerprint
                return self._leave_with(different_code(first, ours, host, known.fingerprint))
        return self._start()

    def _start(self) -> list[Send]:
        self.state, self._deadline = State.RUNNING, None
        self._failures = []
        self._watch.restart()
        self._restarts.begin()
        for known in self._known.values():
            known.codes = None
        ranks = {host: known.ranks for host, known in self._known.items()}
        start = {"type": "start", "attempt": self.attempt, "launch": self.launch, "port": self.pick_port()}
        return self._all({**start, "ranks": ranks})

    def _failed(self, failure: Failure, now: float) -> list[Send]:
        self._failures.append(failure)
        if self.state is State.JOINING:
            if not self.absent():
                return self._leave_with(self._root())
            # Those that are still to come would wait for us in vain.
            self._deadline = min(now + LINGER, self.started + self.settings.join_timeout)
            return []
        if self.state is State.RUNNING:
            if failure.consequence and not self._all_down():
                self._deadline = self._deadline or now + WINDOW
                return []
            return self._end(now)
        return self._down(now)

    def _watched(self, found: list[Message], now: float) -> list[Send]:
        sends: list[Send] = []
        for message in found:
            sends += self._all(message)
            if message["type"] == "hung" and message["action"] in ("restart", "fail"):
                sends += self._failed(Failure.from_json(message["failure"]), now)
        return sends

    def _end(self, now: float) -> list[Send]:
        self.state, self._deadline = State.ENDING, now + END_LIMIT
        return self._all({"type": "end", "attempt": self.attempt}) + self._down(now)

    def _down(self, now: float) -> list[Send]:
        if not self._all_down():
            return []
        if self.state is State.RUNNING:
            return self._end(now) if self._failures else self._leave(0, None)
        if self.state is State.STOPPING:
            return self._stopped()
        return self._again() if self.state is State.ENDING else []

    def _again(self) -> list[Send]:
        cause = self._root()
        if lost := [host for host, known in self._known.items() if known.lost]:
            return self._leave_with(cause, f"no restart: {', '.join(lost)} is lost")
        decision = self._restarts.after(cause, made=self.attempt)
        told = {"type": "failed", "attempt": self.attempt, "step": decision.step}
        record = self._all(told) if decision.step is not None else []
        if not decision.again:
            return record + self._leave_with(replace(cause, note=decision.note), f"no restart: {decision.why}")
        if self._stopping:
            return record + self._leave(STOPPED, None, "stopped before the next attempt")
        if not cause.hung:  # it is said already
            logger.warning("%s", cause.headline)
        logger.warning("restarting all ranks: %s", decision.why)
        self.attempt += 1
        return record + self._start()

    def _stop_asked(self, host: str, now: float) -> list[Send]:
        if self._stopping:
            return []
        self._stopping = True
        if self.state is State.JOINING:
            return (
                self._leave_with(self._root())
                if self._failures
                else self._leave(STOPPED, None, "stopped before the start")
            )
        if self.state is State.ENDING:
            return []
        self.state, self._deadline = State.STOPPING, now + self.settings.grace + LEAVE_MARGIN
        return self._all({"type": "stop", "host": host}) + self._down(now)

    def _stopped(self) -> list[Send]:
        codes = [code for known in self._known.values() for code in known.codes or ()]
        real = [failure for failure in self._failures if not failure.consequence]
        if not real and all(code == 0 for code in codes):
            return self._leave(0, None)
        if not real and any(code in TERMINATED for code in codes):
            # Ranks that saw the others leave have nothing of their own to say.
            return self._leave(STOPPED, None, "stopped as asked")
        return self._leave_with(self._root())

    def _leave_with(self, failure: Failure, why: str = "") -> list[Send]:
        return self._leave(failure.code, failure, why)

    def _leave(self, code: int, failure: Failure | None, why: str = "") -> list[Send]:
        self.state, self._deadline = State.LEAVING, None
        told = failure.to_json() if failure else None
        self.verdict = {"type": "leave", "code": code, "failure": told, "why": why}
        return self._all(self.verdict)

    # What is known

    def _all(self, message: Message) -> list[Send]:
        return [(host, message) for host, known in self._known.items() if known.present]

    def absent(self) -> list[str]:
        """Hosts that are still to come."""
        return [host for host, known in self._known.items() if not known.present and not known.lost]

    def _all_down(self) -> bool:
        return all(known.codes is not None for known in self._known.values())

    def _root(self) -> Failure:
        return min(self._failures, key=lambda failure: (failure.consequence, failure.time))
