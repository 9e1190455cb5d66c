"""What CreateHyperParameterTuningJob refuses, or what makes a tuning job worth less than it costs, before it is sent.

As the documentation of the API has it. The same holds for a study on this machine: what was rehearsed is what is
submitted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from moorage.cloud import space
from moorage.cloud.finding import Finding
from moorage.cloud.space import Categorical, Integer, Numeric, Range
from moorage.cloud.tuning import EPOCHS, Tuning, rungs
from moorage.contract.hyperparameters import KEY

MOST_RANGES = 30
MOST_VALUES = 30
MOST_HYPERPARAMETERS = 100
_PLACE = "HyperParameterTuningJobConfig"


def findings(
    tuning: Tuning, *, metrics: Mapping[str, str], hyperparameters: Mapping[str, str], arguments: Sequence[str] = ()
) -> list[Finding]:
    """metrics: MetricDefinitions. hyperparameters: those that do not change, as typed. arguments: the program's."""
    return [
        *_objective(tuning, metrics),
        *_ranges(tuning, hyperparameters),
        *_trials(tuning),
        *(_hyperband(tuning, hyperparameters) if tuning.strategy == "hyperband" else _without_hyperband(tuning)),
        *_arguments(arguments),
    ]


def _objective(tuning: Tuning, metrics: Mapping[str, str]) -> Iterator[Finding]:
    metric = tuning.objective.metric
    if metric not in metrics:
        near = difflib.get_close_matches(metric, metrics, n=1)
        known = f"did you mean {near[0]}?" if near else f"those there are: {', '.join(metrics) or 'none'}"
        yield Finding(
            code="objective-undefined", place=f"{_PLACE}.HyperParameterTuningJobObjective.MetricName",
            what=f"the objective {metric} has no metric definition",
            why=f"without a regex nothing finds it in a trial's log; {known}",
            fix=f"have the program call run.report({metric}=...), or give --metric {metric}=REGEX",
        )  # fmt: skip
    elif metric.startswith("train_"):
        yield Finding(
            code="objective-training", severity="warning",
            place=f"{_PLACE}.HyperParameterTuningJobObjective.MetricName",
            what=f"the objective {metric} is measured on the training data, every few steps",
            why="what fits them best may generalize worst, and early stopping counts its values as epochs",
            fix="report a metric of held-out data once an epoch: run.report(val_loss=...)",
        )  # fmt: skip


def _ranges(tuning: Tuning, hyperparameters: Mapping[str, str]) -> Iterator[Finding]:
    place = f"{_PLACE}.ParameterRanges"
    if not tuning.ranges:
        yield Finding(
            code="no-ranges", place=place, what="nothing is searched",
            why="no hyperparameter has a range", fix="--range lr=1e-4:1e-1:log, or [tune.ranges] in the job file",
        )  # fmt: skip
    static = hyperparameters.keys() - {one.name for one in tuning.ranges}
    for what, number, most in (
        ("hyperparameters are searched", len(tuning.ranges), MOST_RANGES),
        ("hyperparameters in all", len(tuning.ranges) + len(static), MOST_HYPERPARAMETERS),
    ):
        if number > most:
            yield Finding(
                code="too-many-ranges", place=place, what=f"{number} {what}, more than {most}",
                why="CreateHyperParameterTuningJob refuses it", fix="search fewer: those that matter most",
            )  # fmt: skip
    for one in tuning.ranges:
        yield from _name(one)
        yield from _values(one) if isinstance(one, Categorical) else _bounds(one)


def _name(one: Range) -> Iterator[Finding]:
    reserved = one.name.startswith(("sagemaker_", "_"))
    if not KEY.fullmatch(one.name) or reserved:
        yield Finding(
            code="range-name", place=f"{_PLACE}.ParameterRanges", what=f"{one.name!r} cannot be searched",
            why="it is the platform's own" if reserved else "no program can be given a hyperparameter of that name",
            fix="name a hyperparameter of the program, or a setting as moorage_accumulation",
        )  # fmt: skip


def _values(one: Categorical) -> Iterator[Finding]:
    place = f"{_PLACE}.ParameterRanges.CategoricalParameterRanges"
    if len(one.values) > MOST_VALUES:
        yield Finding(
            code="too-many-values", place=place,
            what=f"{one.name} has {len(one.values)} values, more than {MOST_VALUES}",
            why="CreateHyperParameterTuningJob refuses it", fix="give a range where they are numbers: LOW:HIGH",
        )  # fmt: skip
    if twice := sorted({value for value in one.values if one.values.count(value) > 1}):
        yield Finding(
            code="value-twice", place=place, what=f"{one.name} has the value {twice[0]!r} twice",
            why="it would be tried twice as often", fix="leave one out",
        )  # fmt: skip
    if not all(one.values) or any(len(value) > 256 for value in one.values):
        yield Finding(
            code="value-length", place=place, what=f"{one.name} has a value that is empty or has over 256 characters",
            why="CreateHyperParameterTuningJob refuses it", fix="give a short name, and have the program look it up",
        )  # fmt: skip


def _bounds(one: Numeric) -> Iterator[Finding]:
    kind = "Integer" if isinstance(one, Integer) else "Continuous"
    place = f"{_PLACE}.ParameterRanges.{kind}ParameterRanges"
    text = f"{one.name}={space.described(one)}"
    if one.low >= one.high:
        yield Finding(
            code="range-empty", place=place, what=f"the range {text} is empty",
            why="its low end is not below its high end", fix="swap them, or give the one value as a hyperparameter",
        )  # fmt: skip
    if one.scaling == "Logarithmic" and one.low <= 0:
        yield Finding(
            code="range-log", place=place, what=f"the range {text} is logarithmic and not above 0",
            why="0 and what is below it have no logarithm", fix="begin at a small number, as 1e-6, or leave log out",
        )  # fmt: skip
    if one.scaling == "ReverseLogarithmic" and (kind == "Integer" or not 0 <= one.low < one.high < 1):
        yield Finding(
            code="range-reverse-log", place=place, what=f"the range {text} cannot be reverse-logarithmic",
            why="that is for numbers close to 1: from 0 on, and below 1", fix="as momentum=0.9:0.999:reverse-log",
        )  # fmt: skip


def _trials(tuning: Tuning) -> Iterator[Finding]:
    place = f"{_PLACE}.ResourceLimits"
    if tuning.strategy == "grid":
        numeric = [one.name for one in tuning.ranges if not isinstance(one, Categorical)]
        if numeric:
            yield Finding(
                code="grid-continuous", place=f"{_PLACE}.ParameterRanges",
                what=f"a grid has no place for the range of {numeric[0]}", why="it takes every value of each list",
                fix=f"give values: {numeric[0]}=V1,V2,V3, or another strategy",
            )  # fmt: skip
        elif tuning.trials is not None and tuning.ranges and tuning.trials != space.grid_size(tuning.ranges):
            yield Finding(
                code="grid-size", place=f"{place}.MaxNumberOfTrainingJobs",
                what=f"the grid has {space.grid_size(tuning.ranges)} trials, and not {tuning.trials}",
                why="CreateHyperParameterTuningJob takes the number of combinations only",
                fix="leave trials out, or search fewer values",
            )  # fmt: skip
    if tuning.parallel > tuning.total:
        yield Finding(
            code="parallel", severity="warning", place=f"{place}.MaxParallelTrainingJobs",
            what=f"{tuning.parallel} trials at once of {tuning.total} in all", why="there are no more to run",
            fix=f"give parallel={tuning.total} at most",
        )  # fmt: skip
    elif tuning.strategy == "bayesian" and tuning.parallel > 1 and tuning.parallel * 2 > tuning.total:
        yield Finding(
            code="parallel-bayesian", severity="warning", place=f"{place}.MaxParallelTrainingJobs",
            what=f"{tuning.parallel} of {tuning.total} trials at once leave bayesian search little to learn from",
            why="it chooses by the trials that have ended", fix="fewer at once, or the strategy random",
        )  # fmt: skip
    if tuning.name in tuning.warm_start:
        yield Finding(
            code="warm-start-itself", place="WarmStartConfig", what=f"{tuning.name} cannot begin with its own results",
            fix="name tuning jobs that have ended",
        )  # fmt: skip


def _hyperband(tuning: Tuning, hyperparameters: Mapping[str, str]) -> Iterator[Finding]:
    place = f"{_PLACE}.StrategyConfig.HyperbandStrategyConfig"
    if tuning.early_stopping:
        yield Finding(
            code="hyperband-early-stopping", place=f"{_PLACE}.TrainingJobEarlyStoppingType",
            what="hyperband does not go with early_stopping", why="it stops trials by itself; the API refuses both",
            fix="leave early_stopping out",
        )  # fmt: skip
    if tuning.max_resource is None:
        yield Finding(
            code="hyperband-max-resource", place=f"{place}.MaxResource",
            what="hyperband does not know how long a trial is",
            why=f"there is neither max_resource nor a hyperparameter named {', '.join(EPOCHS)} that does not change",
            fix="give --max-resource N, the reports of a trial that runs to its end, or -p epochs=N",
        )  # fmt: skip
        return
    least = tuning.min_resource or 1
    if least > tuning.max_resource:
        yield Finding(
            code="hyperband-resources", place=f"{place}.MinResource",
            what=f"min_resource {least} is more than max_resource {tuning.max_resource}",
            why="no trial could be stopped", fix="give a smaller min_resource",
        )  # fmt: skip
    elif not rungs(least, tuning.max_resource)[1:]:
        yield Finding(
            code="hyperband-short", severity="warning", place=f"{place}.MaxResource",
            what=f"from {least} to {tuning.max_resource} reports there is little to stop early",
            why="hyperband compares trials each time they have come three times as far",
            fix="more epochs, a smaller min_resource, or the strategy bayesian with early_stopping",
        )  # fmt: skip
    for name in EPOCHS:
        said = hyperparameters.get(name, "")
        if said.isdecimal() and int(said) > tuning.max_resource and name not in {one.name for one in tuning.ranges}:
            yield Finding(
                code="hyperband-epochs", severity="warning", place=f"{place}.MaxResource",
                what=f"trials have {name}={said}, and are stopped after {tuning.max_resource} reports",
                why="what depends on the length, such as a schedule of the learning rate, never comes to its end",
                fix=f"give {name}={tuning.max_resource}, or leave max_resource out",
            )  # fmt: skip


def _without_hyperband(tuning: Tuning) -> Iterator[Finding]:
    for name, value in (("min_resource", tuning.min_resource), ("max_resource", tuning.max_resource)):
        if value is not None:
            yield Finding(
                code="resource-without-hyperband", place=f"{_PLACE}.StrategyConfig",
                what=f"{name} is of hyperband only, and the strategy is {tuning.strategy}",
                why="CreateHyperParameterTuningJob refuses it", fix=f"leave {name} out, or --strategy hyperband",
            )  # fmt: skip


def _arguments(arguments: Sequence[str]) -> Iterator[Finding]:
    if arguments:
        yield Finding(
            code="tune-arguments", place="TrainingJobDefinition.AlgorithmSpecification",
            what="the trials of a tuning job cannot be given arguments", why="their entry point cannot be replaced",
            fix="make hyperparameters of them: -p NAME=VALUE",
        )  # fmt: skip
