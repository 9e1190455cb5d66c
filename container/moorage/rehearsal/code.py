"""The program's code, taken once for a job, as the clients upload it: what is changed later is not the job's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from moorage.rehearsal.job import Job
from moorage.rehearsal.journal import FILE as EVENTS
from moorage.rehearsal.runs import MARKER

FOLDER = "code"
"""In a run's folder."""


def submitted(job: Job) -> Job:
    """The job with its code in its own folder, where that was not baked into the image. Raises OSError."""
    if job.source is None:
        return job
    target = job.folder / FOLDER
    _take(job.source, target, among=job.folder.resolve().parent)
    return replace(job, source=target)


def _take(source: Path, target: Path, among: Path) -> None:
    """among: the folder of all runs. They may lie in the source, and those that live change while it is copied."""
    usual = shutil.ignore_patterns("__pycache__", ".git", ".venv")

    def ignored(parent: str, names: list[str]) -> set[str]:
        runs = {name for name in names if Path(parent, name).resolve() == among or _is_run(Path(parent, name))}
        return runs | usual(parent, names)

    shutil.copytree(source, target, ignore=ignored)


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (MARKER, EVENTS))
