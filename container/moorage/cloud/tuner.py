"""The loop of a study: trials are drawn, rehearsed side by side, stopped early, and told to the store.

One thread decides; each trial has one that rehearses it. What happened is in the store and in the trials' folders
before anything follows from it, so a study that is killed goes on from there.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Literal

from moorage.cloud import cut
from moorage.cloud.results import best_number, without_better
from moorage.cloud.store import State, Stored, best_of
from moorage.cloud.study import Study
from moorage.cloud.told import Began, Over, Reported, Tell, Told
from moorage.cloud.trial import CHECKPOINTS, Reports, highest_step, trial_job, trial_name
from moorage.cloud.tuning import EPOCHS
from moorage.errors import MoorageError
from moorage.rehearsal.clean import clean
from moorage.rehearsal.events import Event, Metric
from moorage.rehearsal.life import rehearse
from moorage.rehearsal.outcome import Outcome
from moorage.rehearsal.stopper import Stopper

Ended = Literal["trials", "target", "patience", "max-run", "stop", "failing"]
"""Why no more trials are made: they were all made, ..., Ctrl-C, or none of them works."""
Stopping = Literal["", "early", "limit", "study", "stop"]
"""Why a trial was asked to stop: by the pruner, at max_resource, since the study ends; with the study, to go on."""

_LOOK = 0.2
"""Seconds between two looks at who wants the study to stop."""
_HOPELESS = 3
"""Trials that failed before any reported anything, after which no more are tried."""

_Heard = SimpleQueue[tuple[int, Event | Future[Outcome]]]


@dataclass(kw_only=True)
class _Running:
    trial: Stored
    name: str
    reports: Reports
    stopper: Stopper = field(default_factory=Stopper)
    stopping: Stopping = ""
    steps: int = 0


class Tuner:
    def __init__(self, study: Study, tell: Tell, *, env: Mapping[str, str], stop: Stopper) -> None:
        self._study, self._store, self._tuning = study, study.store, study.tuning
        self._tell, self._env, self._stop = tell, env, stop
        self._running: dict[int, _Running] = {}
        self._heard: _Heard = SimpleQueue()
        self._ended: Ended | None = None
        self._error: MoorageError | OSError | None = None
        self._began = time.monotonic()

    def run(self) -> Ended:
        """Until all trials are made, or something ends it. Raises what kept a trial from being rehearsed at all."""
        if self._study.again:
            clean(self._env)
            self._enough()
        left = deque(self._store.unfinished())
        with ThreadPoolExecutor(self._tuning.parallel) as pool:
            try:
                while True:
                    self._start_more(pool, left)
                    if not self._running:
                        break
                    self._hear()
                    self._heed()
            finally:
                for running in self._running.values():
                    running.stopper.ask()
                    running.stopper.ask()
        if self._error is not None:
            raise self._error
        return self._ended or "trials"

    # Beginning

    def _start_more(self, pool: ThreadPoolExecutor, left: deque[Stored]) -> None:
        while self._ended is None and len(self._running) < self._tuning.parallel:
            if left:
                self._go_on(pool, left.popleft())
            elif len(self._store.trials()) < self._tuning.total:
                self._start(pool, self._new(self._store.draw()), again=False)
            else:
                return

    def _new(self, trial: Stored) -> _Running:
        name = trial_name(self._tuning.name, trial.number)
        return _Running(trial=trial, name=name, reports=Reports(metric=self._tuning.objective.metric))

    def _go_on(self, pool: ThreadPoolExecutor, trial: Stored) -> None:
        """With one that was cut: told, where it had ended; else started again."""
        running = self._new(trial)
        running.stopping = trial.facts.get("stopping", "")
        left = cut.take(self._study.folder, running.name, for_good=bool(running.stopping))
        running.steps = highest_step(left.events)
        early = False
        for event in left.events:
            value = running.reports.new(event)
            # What it said as its study was killed, too late to be stored.
            if value is not None and running.reports.count > len(trial.values):
                early = self._store.report(trial.number, value)
        if left.status or early:
            running.stopping = running.stopping or ("early" if early else "")
            self._settle(running, left.status or "Stopped", left.reason, left.seconds)
        else:
            self._start(pool, running, again=True)

    def _start(self, pool: ThreadPoolExecutor, running: _Running, *, again: bool) -> None:
        number, searched = running.trial.number, running.trial.hyperparameters
        job = trial_job(self._study.job, self._tuning, number, searched, self._study.folder)
        self._running[number] = running
        self._say(Began, running, hyperparameters=searched, again=again)
        hear = partial(_hear, self._heard, number)
        future = pool.submit(rehearse, job, hear, env=self._env, stop=running.stopper)
        future.add_done_callback(partial(_put, self._heard, number))

    # Hearing

    def _hear(self) -> None:
        try:
            number, what = self._heard.get(timeout=_LOOK)
        except Empty:
            return
        running = self._running[number]
        if isinstance(what, Future):
            self._over(running, what)
        else:
            self._reported(running, what)

    def _reported(self, running: _Running, event: Event) -> None:
        running.steps = max(running.steps, highest_step([event]))
        value = running.reports.new(event)
        if value is None or running.stopping in ("early", "limit"):
            return
        number, count, limit = running.trial.number, running.reports.count, self._tuning.max_resource
        early = self._store.report(number, value)
        if early:
            self._ask(running, "early")
        elif limit is not None and count >= limit and not self._ends_itself(running, limit):
            self._ask(running, "limit")
        self._say(Reported, running, value=value, count=count, stopped=early)
        if self._reaches(value):
            self._end("target")

    def _ends_itself(self, running: _Running, limit: int) -> bool:
        """Whether the program makes no more than `limit` reports, by what it was told."""
        given = {**self._study.job.hyperparameters, **running.trial.hyperparameters}
        return any(given.get(name) == str(limit) for name in EPOCHS)

    def _reaches(self, value: float) -> bool:
        target = self._tuning.target
        return target is not None and math.isfinite(value) and not self._tuning.objective.better(target, value)

    def _ask(self, running: _Running, why: Stopping) -> None:
        """Stop a trial, as StopTrainingJob does. What ends it for good is noted first."""
        if not running.stopping or (running.stopping == "stop" and why != "stop"):
            running.stopping = why
            if why != "stop":
                self._store.note_trial(running.trial.number, stopping=why)
        if not running.stopper.asked:
            running.stopper.ask()

    def _heed(self) -> None:
        """Who wants the study to end."""
        if self._stop.asked:
            self._end("stop")
        elif self._tuning.max_run is not None and time.monotonic() - self._began >= self._tuning.max_run:
            self._end("max-run")
        if self._stop.hard:
            for running in self._running.values():
                if not running.stopper.hard:
                    running.stopper.ask()

    def _end(self, why: Ended) -> None:
        self._ended = self._ended or why
        for running in self._running.values():
            self._ask(running, "stop" if why == "stop" else "study")

    # Ending

    def _over(self, running: _Running, future: Future[Outcome]) -> None:
        try:
            outcome = future.result()
        except (MoorageError, OSError) as error:
            # It is this machine's fault, or the description's: others would meet it too.
            self._error = self._error or error
            del self._running[running.trial.number]
            self._end("stop")
            return
        running.steps = max([running.steps, *(attempt.last or 0 for attempt in outcome.attempts)])
        self._settle(running, outcome.status, outcome.failure_reason, outcome.training_seconds)

    def _settle(self, running: _Running, status: str, reason: str, seconds: float) -> None:
        """Tell the store how a trial ended."""
        number = running.trial.number
        values = next(one.values for one in self._store.trials() if one.number == number)
        value = best_of(values, maximize=self._tuning.objective.maximize)
        state, why = self._verdict(running, status, reason, value)
        seconds += float(running.trial.facts.get("seconds", 0.0))
        self._store.note_trial(number, steps=running.steps, seconds=round(seconds, 3), why=why)
        if state is not None:
            self._store.finish(number, state, value)
            self._forget_checkpoints()
        self._running.pop(number, None)
        over = sum(one.state is not None for one in self._store.trials())
        self._say(Over, running, state=state, value=value, count=len(values), over=over, why=why)
        self._enough()

    def _verdict(self, running: _Running, status: str, reason: str, value: float | None) -> tuple[State | None, str]:
        if status == "Failed":
            return "failed", reason or "it failed"
        if status == "Stopped" and running.stopping == "stop":
            return None, "it goes on with the study"
        if value is None:
            metric = self._tuning.objective.metric
            return "failed", f"{status}, but the objective {metric} was no number in its log, or not there"
        if status == "Stopped" and running.stopping in ("early", "study"):
            return "stopped", "stopped early" if running.stopping == "early" else "stopped with the study"
        return "complete", "stopped at its limit" if status == "Stopped" else "completed"

    def _enough(self) -> None:
        """Whether what is known ends the study."""
        trials, tuning = self._store.trials(), self._tuning
        best = best_number(trials, tuning)
        failed = [one for one in trials if one.state == "failed"]
        if best is not None and self._reaches(best[1]):
            self._end("target")
        elif tuning.patience is not None and without_better(trials, tuning) >= tuning.patience:
            self._end("patience")
        elif len(failed) >= _HOPELESS and not any(one.values for one in trials):
            self._end("failing")

    def _forget_checkpoints(self) -> None:
        """Of trials that are over, but the best: a study of many would fill the disk. Models stay."""
        if self._study.job.checkpoints is not None:
            return  # the job names the place
        trials = self._store.trials()
        best = best_number(trials, self._tuning)
        for one in trials:
            if one.state is not None and (best is None or one.number != best[0]):
                name = trial_name(self._tuning.name, one.number)
                shutil.rmtree(self._study.folder / CHECKPOINTS / name, ignore_errors=True)

    def _say(self, kind: type[Told], running: _Running, **given: Any) -> None:
        best = best_number(self._store.trials(), self._tuning)
        number, name = running.trial.number, running.name
        self._tell(kind(number=number, name=name, running=len(self._running), best=best, **given))


def _hear(heard: _Heard, number: int, event: Event) -> None:
    if isinstance(event, Metric):
        heard.put((number, event))


def _put(heard: _Heard, number: int, future: Future[Outcome]) -> None:
    heard.put((number, future))
