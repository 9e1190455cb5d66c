"""Whether a job will find instances that an earlier one left warm; and where not, what differs.

https://docs.aws.amazon.com/sagemaker/latest/dg/train-warm-pools.html has what has to match. The image is not among it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from moorage.cloud.aws import aws_errors

LOOKED_AT = 10
"""Warm pools, the newest first."""

_COMPARED = {
    "RoleArn": ("RoleArn",),
    "instance type": ("ResourceConfig", "InstanceType"),
    "instances": ("ResourceConfig", "InstanceCount"),
    "volume": ("ResourceConfig", "VolumeSizeInGB"),
    "key of the volume": ("ResourceConfig", "VolumeKmsKeyId"),
    "subnets": ("VpcConfig", "Subnets"),
    "security groups": ("VpcConfig", "SecurityGroupIds"),
    "encryption between instances": ("EnableInterContainerTrafficEncryption",),
    "network isolation": ("EnableNetworkIsolation",),
}

log = logging.getLogger("moorage")


def differences(request: Mapping[str, Any], last: Mapping[str, Any]) -> Iterator[str]:
    """`volume: 50, not 30`: why the instances of `last` are not this job's. request: CreateTrainingJob. last: as
    DescribeTrainingJob answers.
    """
    for what, path in _COMPARED.items():
        wanted, there = _at(request, path), _at(last, path)
        if wanted != there:
            yield f"{what}: {_shown(wanted)}, not {_shown(there)}"


def _at(request: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = request
    for key in path:
        value = (value or {}).get(key)
    if isinstance(value, list):
        return sorted(value)
    return value or None  # False, and what is not said, are the same


def _shown(value: Any) -> str:
    return "none" if value is None else ", ".join(value) if isinstance(value, list) else str(value)


def tell(request: Mapping[str, Any], sagemaker: Any) -> None:
    """Log which warm pool the job will find, or why the closest one is not for it. Raises CloudError."""
    with aws_errors("cannot look for warm pools", allow="sagemaker:ListTrainingJobs, sagemaker:DescribeTrainingJob"):
        listed = sagemaker.list_training_jobs(
            WarmPoolStatusEquals="Available", SortBy="CreationTime", SortOrder="Descending", MaxResults=LOOKED_AT
        )
        names = [one["TrainingJobName"] for one in listed["TrainingJobSummaries"]]
        found = {name: sagemaker.describe_training_job(TrainingJobName=name) for name in names}
    differing = {name: list(differences(request, one)) for name, one in found.items()}
    if not differing:
        log.info("no instances are warm: this job starts them, and leaves them warm")
        return
    name, why = min(differing.items(), key=lambda one: len(one[1]))
    if why:
        log.warning("the instances that %s left warm are not for this job: %s", name, "; ".join(why))
    else:
        log.info("takes the instances that %s left warm", name)
