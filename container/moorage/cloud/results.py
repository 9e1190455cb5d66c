"""What came of a study so far: its trials, the best of them, and the steps that stopping early saved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage.cloud.store import Stored, best_of
from moorage.cloud.study import Study
from moorage.cloud.trial import trial_name
from moorage.cloud.tuning import Tuning

_STATUS = {"complete": "Completed", "stopped": "Stopped", "failed": "Failed"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One of them. status: as DescribeTrainingJob has it; Stopped is stopped early. values: of the objective, report by
    report. best: of them, None where none is a number. steps: done in all. seconds: of training. why: it ended so.
    model: the archive, None where it left none.
    """

    number: int
    name: str
    status: str
    hyperparameters: Mapping[str, str]
    values: tuple[float, ...]
    best: float | None
    steps: int
    seconds: float
    why: str
    folder: Path
    model: Path | None

    @property
    def failed(self) -> bool:
        return self.status == "Failed"

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "name": self.name,
            "status": self.status,
            "hyperparameters": dict(self.hyperparameters),
            "values": [value if math.isfinite(value) else None for value in self.values],
            "best": self.best,
            "steps": self.steps,
            "seconds": self.seconds,
            "why": self.why,
            "folder": str(self.folder),
            "model": None if self.model is None else str(self.model),
        }


@dataclass(frozen=True, kw_only=True)
class Results:
    """ended: why no more trials are made, "" while they are. static: hyperparameters that all trials have in common."""

    folder: Path
    tuning: Tuning
    trials: tuple[Trial, ...]
    ended: str
    static: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def best(self) -> Trial | None:
        found: Trial | None = None
        for trial in self.trials:
            if trial.best is None or trial.failed:
                continue
            if found is None or self.tuning.objective.better(trial.best, found.best):
                found = trial
        return found

    @property
    def steps(self) -> int:
        return sum(trial.steps for trial in self.trials)

    @property
    def steps_to_the_end(self) -> int:
        """That the trials would have done, had none been stopped early: by the steps that each did for a report."""
        reports = [len(trial.values) for trial in self.trials if trial.status == "Completed"]
        most = self.tuning.max_resource or max(reports, default=0)
        return sum(_whole(trial, most) for trial in self.trials)

    @property
    def saved(self) -> float:
        """Share of the steps."""
        whole = self.steps_to_the_end
        return 1 - self.steps / whole if whole else 0.0

    def counts(self) -> dict[str, int]:
        order = ("Completed", "Stopped", "Failed", "InProgress")
        return {name: count for name in order if (count := sum(trial.status == name for trial in self.trials))}

    def to_json(self) -> dict[str, Any]:
        best = self.best
        return {
            "name": self.tuning.name,
            "folder": str(self.folder),
            "objective": str(self.tuning.objective),
            "strategy": self.tuning.strategy,
            "ended": self.ended,
            "counts": self.counts(),
            "steps": self.steps,
            "steps_to_the_end": self.steps_to_the_end,
            "saved": round(self.saved, 4),
            "best": None if best is None else best.to_json(),
            "trials": [trial.to_json() for trial in self.trials],
        }


def _whole(trial: Trial, most: int) -> int:
    if trial.status != "Stopped" or not trial.values:
        return trial.steps
    return max(trial.steps, round(trial.steps / len(trial.values) * most))


def results(study: Study, ended: str) -> Results:
    searched = {one.name for one in study.tuning.ranges}
    return Results(
        folder=study.folder,
        tuning=study.tuning,
        trials=tuple(_trial(study, stored) for stored in study.store.trials()),
        ended=ended,
        static={name: value for name, value in study.job.hyperparameters.items() if name not in searched},
    )


def best_number(trials: Sequence[Stored], tuning: Tuning) -> tuple[int, float] | None:
    """Of the best trial so far, and its value."""
    found: tuple[int, float] | None = None
    for one in trials:
        value = best_of(one.values, maximize=tuning.objective.maximize)
        if value is None or one.state == "failed":
            continue
        if tuning.objective.better(value, found[1] if found else None):
            found = one.number, value
    return found


def without_better(trials: Sequence[Stored], tuning: Tuning) -> int:
    """Trials that are over since the best one, by their numbers."""
    over = [one for one in trials if one.state is not None]
    best = best_number(over, tuning)
    return len([one for one in over if best is None or one.number > best[0]])


def _trial(study: Study, stored: Stored) -> Trial:
    name = trial_name(study.tuning.name, stored.number)
    model = study.folder / name / "model.tar.gz"
    return Trial(
        number=stored.number,
        name=name,
        status=_STATUS.get(stored.state or "", "InProgress"),
        hyperparameters=stored.hyperparameters,
        values=stored.values,
        best=best_of(stored.values, maximize=study.tuning.objective.maximize),
        steps=int(stored.facts.get("steps", 0)),
        seconds=float(stored.facts.get("seconds", 0.0)),
        why=str(stored.facts.get("why", "")),
        folder=study.folder / name,
        model=model if model.is_file() else None,
    )
