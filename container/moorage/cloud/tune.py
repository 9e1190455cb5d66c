"""`moorage tune` on SageMaker: CreateHyperParameterTuningJob, of the search and the job that were rehearsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from moorage.cloud import rules, submit, tune_rules
from moorage.cloud.aws import aws_errors, client
from moorage.cloud.finding import Finding, allowed
from moorage.cloud.model import check
from moorage.cloud.request import Submission, hyperparameters, training_job
from moorage.cloud.space import Categorical, Integer, Numeric, Range, spelled
from moorage.cloud.trial import BEST
from moorage.cloud.tuning import Tuning, tuning
from moorage.rehearsal.jobfile import Described

_STRATEGIES = {"bayesian": "Bayesian", "random": "Random", "grid": "Grid", "hyperband": "Hyperband"}
_WARM = {"identical": "IdenticalDataAndAlgorithm", "transfer": "TransferLearning"}
_OF_THE_TRIALS = (
    "RoleArn", "InputDataConfig", "OutputDataConfig", "ResourceConfig", "VpcConfig", "StoppingCondition",
    "EnableNetworkIsolation", "EnableInterContainerTrafficEncryption", "EnableManagedSpotTraining", "CheckpointConfig",
    "Environment", "RetryStrategy",
)  # fmt: skip
"""Of CreateTrainingJob, what a TrainingJobDefinition says in the same words."""


@dataclass(frozen=True, kw_only=True)
class TunePlan:
    """base: what its trials have in common, as one job. findings: errors first."""

    base: submit.Plan
    tuning: Tuning
    findings: tuple[Finding, ...]

    @property
    def request(self) -> dict[str, Any]:
        return tuning_job(self.tuning, self.base.submission)


@contextmanager
def plan(described: Described, now: datetime, env: Mapping[str, str], *, dry: bool) -> Iterator[TunePlan]:
    """As `submit.prepared`, and checked. Checkpoints lie under the tuning job's name, each trial's below it."""
    searched = tuning(described, now)
    job = described.job
    named = job.model_copy(update={"submit": job.submit.model_copy(update={"job_name": searched.name})})
    with submit.prepared(replace(described, job=named), now, env, dry=dry) as base:
        ranges = {one.name for one in searched.ranges}
        static = {key: value for key, value in base.submission.hyperparameters.items() if key not in ranges}
        environment = {BEST: str(searched.objective), **base.submission.environment}
        made = replace(base.submission, hyperparameters=static, environment=environment)
        found = [
            *rules.findings(made),
            *tune_rules.findings(searched, metrics=made.metrics, hyperparameters=static, arguments=made.arguments),
            *check("CreateHyperParameterTuningJob", tuning_job(searched, made)),
        ]
        yield TunePlan(
            base=replace(base, submission=made), tuning=searched,
            findings=allowed(submit.once(found), job.submit.allow),
        )  # fmt: skip


def tuning_job(searched: Tuning, base: Submission) -> dict[str, Any]:
    """The request. Pure. base: named as the tuning job; its hyperparameters do not change between the trials."""
    one = training_job(base)
    algorithm = {key: value for key, value in one["AlgorithmSpecification"].items() if not key.startswith("Container")}
    definition = {
        "StaticHyperParameters": hyperparameters(base),
        "AlgorithmSpecification": algorithm,
        **{key: one[key] for key in _OF_THE_TRIALS if key in one},
    }
    parents = [{"HyperParameterTuningJobName": name} for name in searched.warm_start]
    warm = {"ParentHyperParameterTuningJobs": parents, "WarmStartType": _WARM[searched.warm_start_type]}
    return {
        "HyperParameterTuningJobName": searched.name,
        "HyperParameterTuningJobConfig": _config(searched),
        "TrainingJobDefinition": definition,
        **({"WarmStartConfig": warm} if parents else {}),
        **({"Tags": one["Tags"]} if "Tags" in one else {}),
    }


def _config(searched: Tuning) -> dict[str, Any]:
    objective = searched.objective
    limits = {"MaxParallelTrainingJobs": searched.parallel, "MaxNumberOfTrainingJobs": searched.total}
    if searched.max_run is not None:
        limits["MaxRuntimeInSeconds"] = int(searched.max_run)
    ends: dict[str, Any] = {}
    if searched.target is not None:
        ends["TargetObjectiveMetricValue"] = searched.target
    if searched.patience is not None:
        ends["BestObjectiveNotImproving"] = {"MaxNumberOfTrainingJobsNotImproving": searched.patience}
    resources = {
        key: value
        for key, value in (("MinResource", searched.min_resource), ("MaxResource", searched.max_resource))
        if value is not None
    }
    hyperband = searched.strategy == "hyperband" and resources
    return {
        "Strategy": _STRATEGIES[searched.strategy],
        **({"StrategyConfig": {"HyperbandStrategyConfig": resources}} if hyperband else {}),
        "HyperParameterTuningJobObjective": {
            "Type": "Maximize" if objective.maximize else "Minimize", "MetricName": objective.metric,
        },
        "ResourceLimits": limits,
        "ParameterRanges": _ranges(searched.ranges),
        "TrainingJobEarlyStoppingType": "Auto" if searched.early_stopping else "Off",
        **({"TuningJobCompletionCriteria": ends} if ends else {}),
        **({} if searched.seed is None else {"RandomSeed": searched.seed}),
    }  # fmt: skip


def _ranges(ranges: Sequence[Range]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in ranges:
        if isinstance(one, Categorical):
            found.setdefault("CategoricalParameterRanges", []).append({"Name": one.name, "Values": list(one.values)})
        else:
            kind = "Integer" if isinstance(one, Integer) else "Continuous"
            found.setdefault(f"{kind}ParameterRanges", []).append(_numeric(one))
    return found


def _numeric(one: Numeric) -> dict[str, str]:
    return {
        "Name": one.name, "MinValue": spelled(one.low), "MaxValue": spelled(one.high), "ScalingType": one.scaling,
    }  # fmt: skip


def send(planned: TunePlan, env: Mapping[str, str]) -> str:
    """Upload the code, unless it is there, and create the tuning job; its ARN. Raises CloudError."""
    submit.upload_code(planned.base, env)
    sagemaker = client("sagemaker", env, planned.base.region or None)
    allow = "sagemaker:CreateHyperParameterTuningJob"
    with aws_errors(f"cannot create the tuning job {planned.tuning.name}", allow=allow):
        made = sagemaker.create_hyper_parameter_tuning_job(**planned.request)
        return str(made["HyperParameterTuningJobArn"])
