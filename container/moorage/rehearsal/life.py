"""A job's life: instances, downloads, training, interruptions, and what is uploaded in the end."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from moorage.contract.goodput import measure
from moorage.contract.ledger import FOLDER as LEDGER
from moorage.contract.ledger import Record, read_ledger
from moorage.rehearsal import gather, hosts, prefix, runs
from moorage.rehearsal.attempt import Limits, Watch, Watched
from moorage.rehearsal.breaking import Breaking
from moorage.rehearsal.code import submitted
from moorage.rehearsal.containers import DockerEngine
from moorage.rehearsal.engines import Engine, Stream
from moorage.rehearsal.events import AttemptEnded, AttemptStarted, Event, HostLine, Listener, Metric, Note
from moorage.rehearsal.job import Job
from moorage.rehearsal.journal import Journal
from moorage.rehearsal.observer import Observer
from moorage.rehearsal.outcome import Attempt, Outcome
from moorage.rehearsal.processes import ProcessEngine
from moorage.rehearsal.schedule import Faults, Schedule
from moorage.rehearsal.stage import Stage
from moorage.rehearsal.status import ENDS, INTERNAL, Status
from moorage.rehearsal.stopper import Stopper

OUTCOME = "outcome.json"
CHECKPOINTS = "checkpoints"
"""In the run's folder: the prefix, where the job names none."""
_STUCK = 3
"""Attempts without a step further after which that is said."""
_PROCESSES = (
    "hosts are processes of this machine: no image, no limits, no network of their own; what the container brings is "
    "not rehearsed"
)


def quiet(event: Event, /) -> None:
    """A listener that is content with events.jsonl."""


def rehearse(job: Job, tell: Listener = quiet, *, env: Mapping[str, str], stop: Stopper | None = None) -> Outcome:
    """The whole life of `job`. Its folder then holds events.jsonl, outcome.json, logs, model.tar.gz, output.tar.gz.

    env: of the caller: where the engine is, credentials of S3, and for hosts that are processes what they start with.
    Raises ConfigError, EngineError and OSError where it cannot be rehearsed; nothing is left running in any case.
    """
    entry = runs.Entry.create(env, job.folder.absolute())
    try:
        runs.make_folder(job.folder, entry.run)
        job = submitted(job)
        journal = Journal(job.folder, tell)
        engine: Engine
        if job.engine == "docker":
            engine = DockerEngine(job, entry.run, entry.labels, env)
        else:
            engine = ProcessEngine(job, env, entry.begun)
        try:
            return _Life(job, engine, journal, stop or Stopper(), env).live()
        finally:
            engine.close()
            journal.close()
            runs.remove_tree(job.folder / runs.HOSTS)
            (job.folder / runs.MARKER).unlink()
    finally:
        entry.close()


class _Life:
    def __init__(self, job: Job, engine: Engine, journal: Journal, stop: Stopper, env: Mapping[str, str]) -> None:
        self._job, self._engine, self._journal, self._stop, self._env = job, engine, journal, stop, env
        self._status = Status(journal)
        self._observer = Observer(job.metrics, job.step_regex, self._metric)
        self._schedule, self._faults = Schedule(job.interruptions, job.seed), Faults(job.faults)
        self._attempts: list[Attempt] = []
        self._records: list[Record] = []
        self._warnings: list[str] = []
        self._created = time.monotonic()
        self._began: float | None = None
        self._trained = 0.0
        """Seconds of training over all attempts: what MaxRuntimeInSeconds counts."""
        self._billed = 0.0
        self._reason = ""
        self._archives: tuple[Path | None, Path | None] = (None, None)

    def live(self) -> Outcome:
        if self._job.engine == "process":
            self._note(_PROCESSES)
        self._status.enter("Starting")
        self._engine.prepare()
        place = self._job.checkpoints or self._job.folder / CHECKPOINTS
        kept = prefix.opened(place, self._env)
        try:
            retries, stuck = self._job.retries, 0
            while True:
                highest = self._observer.highest
                why = self._attempt(kept, again=retries > 0)
                stuck = stuck + 1 if self._observer.highest == highest else 0
                if stuck == _STUCK:
                    self._note(f"{_STUCK} attempts in a row came no further than step {highest or 0}", warning=True)
                if why == "fault" and retries > 0:
                    retries -= 1
                    self._status.enter("Restarting")
                elif why == "interruption":
                    self._status.enter("Interrupted")
                else:
                    return self._end(why)
                if ended := self._no_instances():
                    return self._end(ended)
        finally:
            kept.close()

    def _attempt(self, kept: prefix.Prefix, *, again: bool) -> str:
        """Why it ended. again: whether the job is started again after a fault of the machine."""
        number, up = len(self._attempts) + 1, time.monotonic()
        if number > 1:
            self._status.enter("Starting")
        home = self._job.folder / runs.HOSTS
        plans = hosts.plan(self._job, home, self._engine.environment(), attempt=number)
        self._status.enter("Downloading")
        self._observer.begin()
        with Stage(self._job, number, plans, kept, self._journal) as stage:
            try:
                watched, attempt = self._train(stage)
            finally:
                # Before the folders go: what runs there writes to them.
                self._engine.remove()
                self._engine.own(home)
            last = watched.why != "interruption" and not (watched.why == "fault" and again)
            if last:
                self._status.enter("Uploading")
            self._flush(stage, watched)
            uploaded = sum(agent.uploaded for agent in stage.agents.values())
            left = sum(agent.left for agent in stage.agents.values())
            self._attempts.append(replace(attempt, uploaded=uploaded, cut=left))
            self._keep_ledger(stage)
            if last:
                self._gather(stage, watched)
        self._billed += time.monotonic() - up
        return watched.why

    def _train(self, stage: Stage) -> tuple[Watched, Attempt]:
        self._engine.create(stage.plans)
        stage.start()
        names = tuple(plan.name for plan in stage.plans)
        self._status.enter("Training")
        self._journal.tell(AttemptStarted, number=stage.number, hosts=names)
        now, started = time.monotonic(), time.time()
        self._began = now if self._began is None else self._began
        running = self._engine.start(self._said)
        watched = Watch(
            job=self._job,
            hosts=running,
            agents=stage.agents,
            schedule=self._schedule,
            breaking=Breaking(
                job=self._job,
                faults=self._faults,
                hosts=running,
                agents=stage.agents,
                disks=stage.disks,
                journal=self._journal,
            ),
            observer=self._observer,
            journal=self._journal,
            stop=self._stop,
            limits=Limits(began=self._began, run=now + self._job.max_run - self._trained, wait=self._wait_until),
            look=lambda: self._look(stage),
        ).until_over()
        self._trained += time.monotonic() - now
        codes = {name: watched.ended[name] for name in names}
        step = self._observer.step
        self._journal.tell(AttemptEnded, number=stage.number, codes=codes, why=watched.why, step=step)
        return watched, Attempt(
            number=stage.number, started=started, ended=time.time(), ended_by=watched.why, first=self._observer.first,
            last=step, grace_used=watched.grace_used, codes=codes,
        )  # fmt: skip

    @property
    def _wait_until(self) -> float:
        return math.inf if self._job.max_wait is None else self._created + self._job.max_wait

    def _no_instances(self) -> str:
        """Wait for other instances: why the job ends while it does, or ""."""
        until = time.monotonic() + self._job.restart_delay
        while not self._stop.asked:
            now = time.monotonic()
            if now >= self._wait_until:
                return "max-wait"
            if self._trained >= self._job.max_run:
                return "max-run"
            if now >= until:
                return ""
            self._stop.wait(min(until, self._wait_until) - now)
        return "stop"

    def _look(self, stage: Stage) -> None:
        for folder in stage.checkpoints():
            self._observer.ledger(folder, stage.ledger_before)

    def _flush(self, stage: Stage, watched: Watched) -> None:
        if self._stop.hard:
            stage.abandon()
        stage.flush(interrupted=watched.why == "interruption", seconds=watched.grace_left)

    def _keep_ledger(self, stage: Stage) -> None:
        """What the attempt wrote, whether it came up or not. A launch that was lost with it is counted here."""
        kept = self._job.folder / LEDGER / str(stage.number)
        for folder in stage.checkpoints():
            for path in (folder / LEDGER).glob("*.jsonl"):
                if path.name not in stage.ledger_before:
                    (kept / LEDGER).mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, kept / LEDGER / path.name)
        self._records += [replace(record, launch=stage.number) for record in read_ledger(kept)]

    def _gather(self, stage: Stage, watched: Watched) -> None:
        folder = self._job.folder
        archives = []
        for what, below in (("model", "model"), ("output", "output/data")):
            files, differ = gather.merge({plan.name: plan.ml / below for plan in stage.plans})
            if differ:
                text = f"several hosts wrote {differ[0]} of the {what} folder, each another: the last one's is kept"
                self._note(f"{text} (and {len(differ) - 1} more)" if differ[1:] else text, warning=True)
            # A model of a job that failed is not uploaded.
            wanted = what == "output" or watched.why not in ("failed", "fault")
            archives.append(gather.archive(files, folder / f"{what}.tar.gz") if wanted else None)
        self._archives = archives[0], archives[1]
        if watched.why == "fault":
            self._reason = INTERNAL
        elif watched.why == "failed":
            failures = {plan.name: plan.ml / "output" / "failure" for plan in stage.plans}
            self._reason = gather.failure_reason(list(watched.ended.items()), failures)

    def _end(self, why: str) -> Outcome:
        self._status.enter(ENDS[why], self._reason)
        for name, count in self._observer.matches.items():
            if not count:
                regex = self._job.metrics[name]
                self._note(f"the regex of the metric {name} matched nothing: {regex}", warning=True)
        goodput = measure(sorted(self._records, key=lambda record: record.key))
        outcome = Outcome(
            name=self._job.name,
            status=self._status.status,
            secondary=self._status.secondary,
            transitions=self._status.transitions,
            failure_reason=self._reason,
            exit_codes=self._attempts[-1].codes if self._attempts else {},
            attempts=tuple(self._attempts),
            training_seconds=self._training_seconds(),
            billable_seconds=round(self._billed, 3),
            interruptions=(self._schedule.made, self._schedule.asked),
            faults=(self._faults.made, self._faults.asked),
            metrics=dict(self._observer.matches),
            goodput=None if goodput is None else goodput.to_json(),
            model=self._archives[0],
            output=self._archives[1],
            folder=self._job.folder,
            warnings=tuple(self._warnings),
        )
        (self._job.folder / OUTCOME).write_text(json.dumps(outcome.to_json(), indent=1) + "\n", encoding="utf-8")
        return outcome

    def _training_seconds(self) -> float:
        if not self._attempts:
            return 0.0
        return round(self._attempts[-1].ended - self._attempts[0].started, 3)

    def _note(self, text: str, *, warning: bool = False) -> None:
        if warning:
            self._warnings.append(text)
        self._journal.tell(Note, text=text, level="warning" if warning else "info")

    def _said(self, host: str, stream: Stream, line: str) -> None:
        self._journal.tell(HostLine, host=host, stream=stream, line=line)
        self._observer.line(host, line)

    def _metric(self, host: str, name: str, value: float | None, step: int | None) -> None:
        self._journal.tell(Metric, host=host, name=name, value=value, step=step)
