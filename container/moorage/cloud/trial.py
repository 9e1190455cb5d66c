"""One trial of a study as a job that is rehearsed, and what its log tells of the objective."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from moorage.cloud.tuning import Tuning
from moorage.contract.s3 import SCHEME
from moorage.contract.setting import ENV_PREFIX
from moorage.rehearsal.events import AttemptEnded, Event, Metric
from moorage.rehearsal.job import Job

CHECKPOINTS = "checkpoints"
"""In the study's folder, a folder for each trial, where the job names no place of its own."""
BEST = f"{ENV_PREFIX}BEST"


def trial_name(tuning: str, number: int) -> str:
    """TUNING-001-8e9cc3ef, as the platform names them."""
    return f"{tuning}-{number:03d}-{hashlib.sha256(f'{tuning}-{number}'.encode()).hexdigest()[:8]}"


def trial_job(base: Job, tuning: Tuning, number: int, values: Mapping[str, str], study: Path) -> Job:
    """base: what all trials have in common. values: of the hyperparameters that are searched."""
    name = trial_name(tuning.name, number)
    metric = tuning.objective.metric
    metrics = {metric: base.metrics[metric]} | dict(base.metrics)  # the first is the one that is tuned
    searched = {one.name for one in tuning.ranges}
    static = {key: value for key, value in base.hyperparameters.items() if key not in searched}
    return replace(
        base,
        name=name,
        folder=study / name,
        hyperparameters={**static, **values},
        client="tuning",
        metrics=metrics,
        env={**_environment(base, tuning), **base.env},
        checkpoints=_apart(base.checkpoints, name) if base.checkpoints else study / CHECKPOINTS / name,
    )


def _environment(base: Job, tuning: Tuning) -> dict[str, str]:
    """What the trials are given where the job does not say it."""
    given = {BEST: str(tuning.objective)}
    if tuning.parallel > 1:
        # They share one machine's cores, and none knows of the others.
        ranks = tuning.parallel * base.hosts * (base.ranks_per_host or 1)
        given["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // ranks))
    return given


def _apart(place: Path | str, name: str) -> Path | str:
    if isinstance(place, str) and place.startswith(SCHEME):
        return f"{place.rstrip('/')}/{name}"
    return Path(place) / name


@dataclass(kw_only=True)
class Reports:
    """The objective as a trial's log has it. What is done again after an interruption does not count again, and neither
    does what another host says too."""

    metric: str
    host: str = ""
    step: int = -1
    count: int = 0

    def new(self, event: Event) -> float | None:
        """The value of another report; None where the event is none."""
        if not isinstance(event, Metric) or event.name != self.metric:
            return None
        self.host = self.host or event.host
        if event.host != self.host or (event.step is not None and event.step <= self.step):
            return None
        self.step = self.step if event.step is None else event.step
        self.count += 1
        return float("nan") if event.value is None else event.value


def highest_step(events: Iterable[Event]) -> int:
    """That was seen, 0 where none was."""
    steps = [event.step or 0 for event in events if isinstance(event, Metric | AttemptEnded)]
    return max(steps, default=0)
