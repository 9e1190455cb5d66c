"""The trials of a study in Optuna's journal: drawn, reported, told. One process writes it, and it may be killed.

A trial's parameters are drawn from the study's seed and its own number, so that a study that was interrupted draws what
it would have drawn.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from moorage.cloud import space
from moorage.cloud.space import Categorical, Integer, Range
from moorage.cloud.tuning import FACTOR, Tuning
from moorage.errors import ConfigError

FILE = "study.journal"

State = Literal["complete", "stopped", "failed"]
"""How a trial ended: by itself or at its limit; stopped early; without an objective."""

_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One trial. number: from 1. values: of the objective, in the order of its reports. state: None while it runs, or
    where its study was cut. facts: what was noted of it."""

    number: int
    hyperparameters: Mapping[str, str] = field(repr=False)
    values: tuple[float, ...] = ()
    state: State | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class _Held(JournalFileOpenLock):
    """The study's folder is locked by whoever writes; Optuna's own lock would outlive a process that is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Store:
    """Raises ConfigError where the journal cannot be read."""

    def __init__(self, folder: Path, tuning: Tuning, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._tuning, self._seed = tuning, seed
        self._distributions = {one.name: distribution(one) for one in tuning.ranges}
        self._study = optuna.create_study(
            storage=_storage(folder / FILE),
            # Hyperband deals its brackets by this name: the same seed deals the same.
            study_name=f"seed-{seed}",
            direction="maximize" if tuning.objective.maximize else "minimize",
            pruner=_pruner(tuning),
            sampler=self._sampler(0),
            load_if_exists=True,
        )
        self._trials: dict[int, optuna.Trial] = {}
        if tuning.strategy == "grid" and not self._all():
            for values in list(space.combinations(tuning.ranges))[: tuning.total]:
                self._study.enqueue_trial(values)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Of the study."""
        return self._study.user_attrs

    def note(self, **facts: Any) -> None:
        """Of the study."""
        for name, value in facts.items():
            self._study.set_user_attr(name, value)

    def trials(self) -> list[Stored]:
        """Those that were drawn, by number."""
        return [self._stored(one) for one in self._all() if one.state != TrialState.WAITING]

    def draw(self) -> Stored:
        """Another trial; its hyperparameters are those that are searched."""
        self._study.sampler = self._sampler(sum(one.state != TrialState.WAITING for one in self._all()))
        trial = self._study.ask(fixed_distributions=self._distributions)
        self._trials[trial.number + 1] = trial
        return self._stored(self._frozen(trial.number + 1))

    def unfinished(self) -> list[Stored]:
        """Those that a study that was cut left; each is as if it had just been drawn."""
        found = []
        for one in self._all():
            if one.state == TrialState.RUNNING:
                self._study.sampler = self._sampler(one.number)
                trial = optuna.Trial(self._study, one._trial_id)
                for name, wanted in self._distributions.items():
                    trial._suggest(name, wanted)  # it may have died between two of them
                self._trials[one.number + 1] = trial
                found.append(self._stored(self._frozen(one.number + 1)))
        return found

    def report(self, number: int, value: float) -> bool:
        """The objective's next value. Whether the trial should be stopped."""
        trial = self._trials[number]
        index = len(self._frozen(number).intermediate_values) + 1
        trial.report(value, index)
        if self._tuning.max_resource is not None and index >= self._tuning.max_resource:
            return False  # it is at its end
        return trial.should_prune()

    def note_trial(self, number: int, **facts: Any) -> None:
        for name, value in facts.items():
            self._trials[number].set_user_attr(name, value)

    def finish(self, number: int, state: State, value: float | None = None) -> None:
        """value: of a trial that is complete."""
        trial = self._trials.pop(number)
        self._study.tell(trial, value if state == "complete" else None, state=_STATES[state])

    def _all(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        return self._all()[number - 1]

    def _stored(self, one: optuna.trial.FrozenTrial) -> Stored:
        state = next((name for name, known in _STATES.items() if known == one.state), None)
        return Stored(
            number=one.number + 1,
            hyperparameters={
                known.name: text_of(known, one.params[known.name])
                for known in self._tuning.ranges
                if known.name in one.params
            },
            values=tuple(one.intermediate_values[index] for index in sorted(one.intermediate_values)),
            state=state,  # type: ignore[arg-type]  # one of _STATES
            facts=dict(one.user_attrs),
        )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}-{number}".encode()).digest()[:4], "big")
        if self._tuning.strategy in ("bayesian", "hyperband"):
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def distribution(one: Range) -> BaseDistribution:
    """Where Optuna draws from. A reverse-logarithmic range is drawn as its distance from 1."""
    if isinstance(one, Categorical):
        return CategoricalDistribution(one.values)
    if isinstance(one, Integer):
        return IntDistribution(one.low, one.high, log=space.is_logarithmic(one))
    if one.scaling == "ReverseLogarithmic":
        return FloatDistribution(1 - one.high, 1 - one.low, log=True)
    return FloatDistribution(one.low, one.high, log=space.is_logarithmic(one))


def text_of(one: Range, drawn: Any) -> str:
    """The hyperparameter's value, as the trial is given it."""
    reverse = not isinstance(one, Categorical) and one.scaling == "ReverseLogarithmic"
    return space.spelled(min(max(1 - drawn, one.low), one.high) if reverse else drawn)  # type: ignore[union-attr]


def _pruner(tuning: Tuning) -> optuna.pruners.BasePruner:
    if tuning.strategy == "hyperband" and tuning.max_resource is not None:
        return optuna.pruners.HyperbandPruner(
            min_resource=tuning.min_resource or 1, max_resource=tuning.max_resource, reduction_factor=FACTOR
        )
    return optuna.pruners.MedianPruner() if tuning.early_stopping else optuna.pruners.NopPruner()


def _storage(path: Path) -> JournalStorage:
    _mend(path)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_Held(str(path))))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the study's journal {path} cannot be read", why=f"{type(error).__name__}: {error}",
            fix="begin a new study; the trials' own folders are whole",
        ) from None  # fmt: skip


def _mend(path: Path) -> None:
    """Cut off a last line that a process which was killed did not end."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    if lines and not _is_json(lines[-1]):
        whole = whole[: -len(lines[-1])]
    if whole != data:
        with path.open("r+b") as file:
            file.truncate(len(whole))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def best_of(values: tuple[float, ...], *, maximize: bool) -> float | None:
    """The best of a trial's reports; None where none is a number."""
    finite = [value for value in values if math.isfinite(value)]
    return (max if maximize else min)(finite) if finite else None
