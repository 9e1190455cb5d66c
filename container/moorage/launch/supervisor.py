"""PID 1 of a host: starts, stops and ends its ranks as the hosts agree, and says when it is over.

Everything happens in one thread, in callbacks of the loop. The log has a thread of its own.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moorage.cluster import Cluster
from moorage.contract.config import JobConfig
from moorage.contract.failure import Failure, job_secrets, remove_stale
from moorage.contract.ledger import Ledger, attempt_name
from moorage.contract.progress import Activity, clear_progress, last_step_at, read_marks, read_progress
from moorage.errors import STOPPED, MoorageError, StopTimeout
from moorage.launch.agreement import LEAVE_MARGIN, TERMINATED
from moorage.launch.attempt import Attempt
from moorage.launch.control import LAST_WORDS, Link
from moorage.launch.entry import Entry
from moorage.launch.lookout import KINDS, Lookout
from moorage.launch.loop import Loop
from moorage.launch.preparation import Preparation
from moorage.launch.restart import folder_state
from moorage.launch.wire import Message
from moorage.processes.children import kill_children, reap
from moorage.processes.logs import LogPump

logger = logging.getLogger("moorage")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the job ended: the same on every host."""

    code: int
    failure: Failure | None = None
    why: str = ""


class Supervisor:
    """Of one host. env: what the ranks inherit. run_folder: for what supervisor and ranks share."""

    def __init__(
        self,
        *,
        loop: Loop,
        pump: LogPump,
        link: Link,
        config: JobConfig,
        preparation: Preparation,
        env: Mapping[str, str],
        run_folder: Path,
    ) -> None:
        self._loop, self._pump, self._link = loop, pump, link
        self._config, self._env, self._run_folder = config, env, run_folder
        self._secrets = job_secrets(env, config.raw["hyperparameters"])
        self._preparation = preparation
        self._entry = Entry(link=link, preparation=preparation, secrets=self._secrets)
        self._attempt: Attempt | None = None
        self._lookout: Lookout | None = None
        self._number = self._launch = 0
        self._saved_state = ""
        self._stop_at: float | None = None
        self._verdict: Verdict | None = None
        self._lost: Failure | None = None
        self._own: Failure | None = None
        self._ledger = Ledger.none()

    def take_part(self, cluster: Cluster) -> None:
        """cluster: what this host found it is part of."""
        self._entry.cluster = cluster

    def refuse(self, error: MoorageError) -> None:
        """This host cannot take part: the others shall hear why."""
        self._preparation.kill()
        self._entry.refuse(Failure.from_error(error, self._config.current_host, time=time.time()))

    def run(self) -> Verdict:
        """Until the job is over on all hosts; no rank of this host is left then."""
        self._link.on_message, self._link.on_lost = self._heard, self._unreachable
        self._link.on_connected = self._entry.introduce
        self._preparation.attach(self._loop, self._pump)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, lambda number=number: self._signalled(number))  # type: ignore[misc]
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        self._reap()
        try:
            self._link.open()
            self._loop.run(lambda: self._verdict is not None)
            assert self._verdict is not None
            self._record_end(self._verdict)
            self._link.leave()
        finally:
            self._end_everything()
        return self._verdict

    # What the hosts agreed on

    def _heard(self, message: Message) -> None:
        kind = message["type"]
        if self._verdict is not None:
            return
        if kind == "start":
            self._launch = int(message["launch"])
            self._start(int(message["attempt"]), int(message["port"]), message["ranks"])
        elif kind == "failed":
            self._ledger.write("attempt-failed", attempt=message["attempt"], step=message["step"])
        elif kind == "stop":
            if self._stop_at is None:
                logger.info("stopping: asked by %s", message["host"])
                self._stop()
        elif kind == "end" and self._attempt is not None:
            self._attempt.kill()
        elif kind in KINDS and self._lookout is not None:
            self._lookout.heard(message)
        elif kind == "leave":
            told = message["failure"]
            failure = Failure.from_json(told) if told else None
            self._verdict = Verdict(code=int(message["code"]), failure=failure, why=str(message["why"]))

    def _start(self, number: int, port: int, ranks: Mapping[str, int]) -> None:
        self._number = number
        if self._stop_at is not None:
            self._link.send({"type": "down", "attempt": number, "codes": [STOPPED], "step": None, "saved": False})
            return
        self._own = None
        plan = self._entry.plan(
            self._config, env=self._env, ranks=ranks, attempt=number, port=port, run_folder=self._run_folder
        )
        logger.info("%s", plan.describe())
        for note in plan.notes if number == 0 else ():
            logger.warning("%s", note)
        clear_progress(self._run_folder)
        if number > 0:
            # A failed attempt may have left one; what counts is how the last attempt ends.
            remove_stale(self._config.paths.failure)
        self._open_ledger(number)
        self._attempt = Attempt(
            loop=self._loop,
            pump=self._pump,
            plan=plan,
            on_failed=self._rank_failed,
            on_stop=self._stopped_from_elsewhere,
            on_over=self._over,
        )
        given = {"given": self._config.given()} if self._config.host_rank == 0 else {}
        self._ledger.write(
            "start", launch=self._launch, attempt=number, host=plan.host, ranks=len(plan.ranks),
            world_size=plan.world_size, **given,
        )  # fmt: skip
        self._saved_state = folder_state(self._config.checkpoint_folder)
        self._lookout = Lookout(
            loop=self._loop,
            send=self._link.send,
            settings=self._config.settings,
            plan=plan,
            run_folder=self._run_folder,
            ledger=self._ledger,
        )
        self._attempt.start()
        self._lookout.start()

    # What the ranks do

    def _reap(self) -> None:
        def ours(pid: int) -> bool:
            return self._preparation.owns(pid) or (self._attempt is not None and self._attempt.owns(pid))

        for pid, status in reap(ours):
            self._preparation.ended(pid, status)
            if self._attempt is not None:
                self._attempt.ended(pid, status)

    def _rank_failed(self, failure: Failure) -> None:
        if failure.rank is not None and self._attempt is not None:
            local_rank = failure.rank - self._attempt.plan.ranks[0].rank
            failure = replace(failure, step=read_progress(self._run_folder, local_rank))
        failure = failure.redacted(self._secrets)
        if not failure.consequence:
            self._own = self._own or failure
        logger.warning("%s%s", failure.headline, " (it may be the effect of another)" if failure.consequence else "")
        self._ledger.write(
            "failed", attempt=self._number, rank=failure.rank, code=failure.code, message=failure.message
        )
        self._link.send({"type": "failed", "attempt": self._number, "failure": failure.to_json()})

    def _over(self, codes: list[int]) -> None:
        if self._lookout is not None:
            self._lookout.close()
        clean = all(code in (0, *TERMINATED) for code in codes)
        step, at = read_progress(self._run_folder), last_step_at(self._run_folder)
        saved = not clean and step is None and folder_state(self._config.checkpoint_folder) != self._saved_state
        self._ledger.write("down", attempt=self._number, codes=codes, step=step, at=at)
        message = {"type": "down", "attempt": self._number, "codes": codes, "step": step, "saved": saved}
        if self._lost is not None:
            self._verdict = Verdict(code=self._lost.code, failure=self._lost)
        else:
            self._link.send(message)

    # Stops

    def _signalled(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._stop_at is not None or self._verdict is not None:
            logger.info("%s again: it is stopping already", name)
            return
        logger.info("%s: stopping all ranks of all hosts, %.0f s at most", name, self._config.settings.grace)
        self._stop_everywhere()

    def _stopped_from_elsewhere(self, rank: int) -> None:
        if self._stop_at is None:
            logger.info("rank %d was asked to stop: stopping all ranks of all hosts", rank)
            self._stop_everywhere()

    def _stop_everywhere(self) -> None:
        self._stop()
        if not self._link.send({"type": "stop"}) and self._attempt is None:
            # The first host may be there in a moment, and would wait for this one.
            self._loop.after(LAST_WORDS, self._alone)

    def _stop(self) -> None:
        grace = self._config.settings.grace
        self._stop_at, self._entry.is_stopping = time.monotonic(), True
        self._ledger.write("stop", attempt=self._number)
        self._preparation.kill()
        self._loop.after(grace, self._grace_over)
        self._loop.after(grace + LEAVE_MARGIN + 2, self._alone)
        if self._attempt is not None:
            self._attempt.terminate()

    def _grace_over(self) -> None:
        if self._attempt is None:
            return
        left = self._dismissed(self._attempt)
        running = [rank for rank in self._attempt.running if rank not in left]
        if not running:
            return
        error = StopTimeout(
            f"still running {self._config.settings.grace:.0f} s after SIGTERM: rank {_listed(running)}",
            why="the program did not end, or could not save its state in time",
            fix="handle SIGTERM as moorage.start() does, save less or faster, or raise the setting grace below 120",
        )
        self._attempt.kill()
        self._rank_failed(Failure.from_error(error, self._config.current_host, time=time.time()))

    def _dismissed(self, attempt: Attempt) -> set[int]:
        """The ranks that have left, and are killed, since nothing is lost: Python may take seconds to end."""
        first = attempt.plan.ranks[0].rank
        marks = read_marks(self._run_folder)
        left = {first + mark.local_rank for mark in marks if mark.activity is Activity.LEFT} & {*attempt.running}
        if left:
            logger.info("stopped, but not ended when the grace was over: rank %s", _listed(sorted(left)))
            attempt.dismiss(left)
        return left

    def _alone(self) -> None:
        """Nobody told us that it is over, and the platform would not wait for that either."""
        if failure := self._own or self._lost:
            self._verdict = self._verdict or Verdict(code=failure.code, failure=failure)
        self._verdict = self._verdict or Verdict(code=STOPPED, why="stopped, without a word from the other hosts")

    def _unreachable(self, failure: Failure) -> None:
        logger.error("%s", failure.message)
        self._ledger.write("lost", host=failure.host)
        if self._attempt is None or self._attempt.over:
            stopped = self._stop_at is not None
            self._verdict = Verdict(code=STOPPED) if stopped else Verdict(code=failure.code, failure=failure)
            return
        self._lost = failure
        if self._stop_at is None:  # else they may be saving, and have until the end of the grace
            self._attempt.kill()
            self._loop.after(LEAVE_MARGIN, self._alone)

    # The end

    def _open_ledger(self, number: int) -> None:
        self._ledger.close()
        name = attempt_name(time.time(), number)
        self._ledger = Ledger.open(self._config.checkpoint_folder, self._config.current_host, name)
        self._ledger.point(self._run_folder)

    def _record_end(self, verdict: Verdict) -> None:
        message = verdict.failure.message if verdict.failure else ""
        self._ledger.write("leave", attempt=self._number, code=verdict.code, why=verdict.why, message=message)

    def _end_everything(self) -> None:
        self._preparation.kill()
        if self._attempt is not None and not self._attempt.over:
            attempt = self._attempt
            attempt.kill()
            until = time.monotonic() + LEAVE_MARGIN
            timer = self._loop.after(LEAVE_MARGIN, _nothing)
            self._loop.run(lambda: attempt.over or time.monotonic() >= until)
            timer.cancel()
        kill_children()
        self._ledger.close()


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def _nothing() -> None:
    pass
