"""A study on this machine: its folder, which one process holds at a time, and all that it needs to go on.

runs/NAME/moorage.toml    the job and what is searched, as described; secrets are not in it
         code/            the program, taken once
         study.journal    Optuna's, with every trial's values
         NAME-001-8e9cc3ef/   a trial: the folder of its rehearsal; .cut-1 is what it did before the study was cut
         checkpoints/     of each trial
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from moorage.cloud.store import FILE, Store
from moorage.cloud.tune_rules import findings
from moorage.cloud.tuning import Tuning, tuning
from moorage.contract.secrets import HIDDEN
from moorage.errors import ConfigError
from moorage.rehearsal import jobfile
from moorage.rehearsal.assemble import RUNS, assemble
from moorage.rehearsal.code import submitted
from moorage.rehearsal.job import Job
from moorage.rehearsal.jobfile import Described

log = logging.getLogger("moorage")

LOCK = ".lock"
_MAY_CHANGE = ("trials", "parallel", "max_run", "target", "patience")
"""Of [tune], in a study that goes on: how long and how much, never what."""

Given = Mapping[tuple[str, ...], tuple[str, Any]]
"""Flags: place in the job file -> the flag's name, and what it said."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """folder: held by this process. job: what its trials have in common. again: whether it goes on."""

    folder: Path
    tuning: Tuning
    job: Job
    store: Store
    again: bool


@contextlib.contextmanager
def begin(described: Described, now: datetime) -> Iterator[Study]:
    """A new one. Raises ConfigError and ProgramError."""
    job, searched = assemble(described, now), tuning(described, now)
    _check(searched, job)
    folder = job.folder.parent / searched.name
    seed = searched.seed if searched.seed is not None else secrets.randbelow(2**31)
    if folder.exists():
        raise ConfigError(f"the study's folder {folder} is there already", fix="wait a second, or give another --name")
    folder.mkdir(parents=True)
    with _held(folder):
        job = submitted(replace(job, folder=folder))
        store = Store(folder, searched, seed)
        store.note(name=searched.name)
        # Last: with it the study is one that can go on.
        part = folder / f"{jobfile.NAME}.part"
        part.write_text(_kept(described, job, seed).to_toml(), encoding="utf-8")
        part.rename(folder / jobfile.NAME)
        yield Study(folder=folder, tuning=searched, job=job, store=store, again=False)


@contextlib.contextmanager
def resume(folder: Path, given: Given, now: datetime) -> Iterator[Study]:
    """One that was stopped or cut. given: flags, which may say what of it changes. Raises ConfigError."""
    kept = _folder(folder)
    with _held(kept):
        described = _described_again(kept, given)
        job, searched = assemble(described, now), tuning(described, now)
        assert searched.seed is not None
        store = Store(kept, searched, searched.seed)
        name = str(store.attributes.get("name", kept.name))
        yield Study(
            folder=kept, tuning=replace(searched, name=name), job=replace(job, folder=kept), store=store, again=True
        )


def _check(searched: Tuning, job: Job) -> None:
    """What the platform would refuse is refused here; what it would only be worse for is logged."""
    found = findings(searched, metrics=job.metrics, hyperparameters=job.hyperparameters, arguments=job.arguments)
    for one in found:
        if one.severity == "warning":
            log.warning("%s (%s): %s; %s", one.what, one.code, one.why, one.fix)
    if first := next((one for one in found if one.severity == "error"), None):
        raise ConfigError(f"the search cannot be made: {first.what}", why=first.why, fix=first.fix)


def _folder(folder: Path) -> Path:
    """As it was named, or by its name in runs/."""
    for path in (folder, RUNS / folder):
        if (path / jobfile.NAME).is_file() and (path / FILE).is_file():
            return path
    raise ConfigError(
        f"{folder} is no study", why=f"there is no {FILE} with a {jobfile.NAME} in it",
        fix="name the folder that `moorage tune --local` made, or its name in runs/",
    )  # fmt: skip


def _kept(described: Described, job: Job, seed: int) -> Described:
    """What the study's own job file says: paths that hold from anywhere, and the seed that was drawn."""
    said = described.job
    machine = said.rehearsal
    place = job.checkpoints.absolute() if isinstance(job.checkpoints, Path) else job.checkpoints
    data = {
        name: table.model_copy(update={"path": str(job.data[name].path.absolute())})
        for name, table in said.data.items()
    }
    kept = said.model_copy(
        update={
            "program": job.program,
            "source": None if job.source is None else job.source.name,
            "data": data,
            "rehearsal": machine.model_copy(
                update={"checkpoints": None if place is None else str(place), "folder": None}
            ),
            "tune": said.tune.model_copy(update={"seed": seed}),
        }
    )
    return Described(job=kept)


def _described_again(folder: Path, given: Given) -> Described:
    path = folder / jobfile.NAME
    before = jobfile.describe(path)
    hidden = {
        (table, name)
        for table in ("hyperparameters", "environment")
        for name, value in getattr(before.job, table).items()
        if value == HIDDEN
    }
    for place, (flag, _) in given.items():
        if place not in hidden and place not in {("tune", name) for name in _MAY_CHANGE}:
            raise ConfigError(
                f"{flag} cannot change in a study that goes on", why="its trials would not be comparable",
                fix=f"leave it out, or begin a new study; --{', --'.join(_MAY_CHANGE).replace('_', '-')} may change",
            )  # fmt: skip
    if missing := sorted(hidden - set(given)):
        table, name = missing[0]
        flag = "--env" if table == "environment" else "-p"
        raise ConfigError(
            f"{table}.{name} was not kept with the study", why="it looks like a secret",
            fix=f"give it again: {flag} {name}{'' if table == 'environment' else '=VALUE'}",
        )  # fmt: skip
    return jobfile.describe(path, given)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Until the end of the block, or of the process, however it ends."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"the study {folder} is at work in another process",
                fix="wait until it ends, or stop it there by Ctrl-C",
            ) from None
        yield
    finally:
        os.close(descriptor)
