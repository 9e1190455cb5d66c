"""A tuning job as it was described: what is searched, for which objective, and how. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from moorage.cloud import space
from moorage.cloud.space import Categorical, Range
from moorage.contract.metrics import METRIC_NAME
from moorage.errors import ConfigError
from moorage.rehearsal.assemble import typed
from moorage.rehearsal.jobfile import Described

if TYPE_CHECKING:
    from moorage.rehearsal.tuneschema import Strategy, WarmStart

TRIALS = 10
"""Where nobody says how many."""
NAME_LENGTH = 32
EPOCHS = ("epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs")
"""Static hyperparameters from which the platform takes MaxResource, in its order."""
FACTOR = 3
"""Of Hyperband, here: of the trials that come to a rung a third goes on. What the platform takes is not known."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    metric: str
    maximize: bool

    @classmethod
    def parse(cls, text: str) -> Objective:
        """`max:val_accuracy`. Raises ConfigError."""
        direction, _, metric = text.partition(":")
        if direction not in ("max", "min") or not METRIC_NAME.fullmatch(metric):
            raise ConfigError(
                f"the objective {text!r} names no direction and metric", fix="write max:val_accuracy or min:val_loss"
            )
        return cls(metric=metric, maximize=direction == "max")

    def __str__(self) -> str:
        return f"{'max' if self.maximize else 'min'}:{self.metric}"

    def better(self, one: float, than: float | None) -> bool:
        return than is None or (one > than if self.maximize else one < than)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """name: of the tuning job; its trials begin with it. ranges: by the name of the hyperparameter.

    trials: None for all of a grid. max_resource: reports of a trial that runs to its end; None where nothing tells.
    resource: the hyperparameter that told it, or "". max_run: seconds. The rest is as [tune] has it.
    """

    name: str
    objective: Objective
    ranges: tuple[Range, ...]
    strategy: Strategy = "bayesian"
    trials: int | None = None
    parallel: int = 1
    early_stopping: bool = False
    min_resource: int | None = None
    max_resource: int | None = None
    resource: str = ""
    warm_start: tuple[str, ...] = field(default=())
    warm_start_type: WarmStart = "identical"
    max_run: float | None = None
    target: float | None = None
    patience: int | None = None
    seed: int | None = None

    @property
    def total(self) -> int:
        """Trials that will be made."""
        if self.trials is not None:
            return self.trials
        return space.grid_size(self.ranges) if self.strategy == "grid" else TRIALS


def tuning(described: Described, now: datetime) -> Tuning:
    """Raises ConfigError where something cannot be read; whether it makes sense is tune_rules' to say."""
    said = described.job.tune
    if said.objective is None:
        raise ConfigError(
            "no objective is named", why="a tuning job compares its trials by one metric",
            fix="--objective max:val_accuracy, or objective in [tune]",
        )  # fmt: skip
    max_resource, resource = said.max_resource, ""
    if max_resource is None and said.strategy == "hyperband":
        max_resource, resource = _resource(described.job.hyperparameters, said.ranges)
    program = described.job.program
    return Tuning(
        name=job_name(described.job.name or (Path(program).stem if program else "job"), now),
        objective=Objective.parse(said.objective),
        ranges=_ranges(described),
        strategy=said.strategy,
        trials=said.trials,
        parallel=said.parallel,
        early_stopping=said.early_stopping,
        min_resource=said.min_resource,
        max_resource=max_resource,
        resource=resource,
        warm_start=tuple(said.warm_start),
        warm_start_type=said.warm_start_type,
        max_run=said.max_run,
        target=said.target,
        patience=said.patience,
        seed=said.seed,
    )


def job_name(base: str, now: datetime) -> str:
    """BASE-260131-120000: a tuning job's name has 32 characters at most, and its trials' names begin with it."""
    moment = f"{now:%y%m%d-%H%M%S}"
    clean = re.sub(r"[^A-Za-z0-9]+", "-", base).strip("-") or "job"
    return f"{clean[: NAME_LENGTH - 1 - len(moment)].rstrip('-')}-{moment}"


def _ranges(described: Described) -> tuple[Range, ...]:
    found: list[Range] = []
    for name, said in described.job.tune.ranges.items():
        if isinstance(said, list):
            found.append(Categorical(name=name, values=tuple(map(typed, said))))
            continue
        try:
            found.append(space.parse(name, said))
        except ConfigError as error:
            where = described.where("tune", "ranges", name)
            raise ConfigError(f"{where}: {error.what}", why=error.why, fix=error.fix) from None
    return tuple(found)


def _resource(hyperparameters: Mapping[str, object], ranges: Mapping[str, object]) -> tuple[int | None, str]:
    """As the platform infers it, from what does not change."""
    for name in EPOCHS:
        value = hyperparameters.get(name)
        if name not in ranges and value is not None and re.fullmatch(r"[1-9][0-9]*", typed(value)):
            return int(typed(value)), name
    return None, ""


def rungs(least: int, most: int, factor: int = FACTOR) -> Sequence[int]:
    """Reports after which Hyperband may stop a trial: 1, 3, 9 of 27."""
    found = []
    while least < most:
        found.append(least)
        least *= factor
    return found
