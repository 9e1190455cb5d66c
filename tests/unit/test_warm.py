"""Whether a job finds instances that are warm: told before it is created, and never in its way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import boto3
import pytest

from moorage.cloud.warm import differences, tell
from moorage.errors import CloudError
from platform_api import platform, refusal

REQUEST = {
    "RoleArn": "arn:aws:iam::1:role/a",
    "ResourceConfig": {
        "InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 50, "KeepAlivePeriodInSeconds": 600,
    },
    "VpcConfig": {"Subnets": ["s-1", "s-2"], "SecurityGroupIds": ["sg-1"]},
    "EnableNetworkIsolation": True,
    "AlgorithmSpecification": {"TrainingImage": "new"},
}  # fmt: skip


def changed(**more: Any) -> Mapping[str, Any]:
    return {**REQUEST, **more}


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (changed(AlgorithmSpecification={"TrainingImage": "old"}), []),
        (changed(VpcConfig={"Subnets": ["s-2", "s-1"], "SecurityGroupIds": ["sg-1"]}), []),
        (changed(EnableInterContainerTrafficEncryption=False), []),
        (changed(RoleArn="arn:aws:iam::1:role/b"), ["RoleArn: arn:aws:iam::1:role/a, not arn:aws:iam::1:role/b"]),
        (changed(ResourceConfig={**REQUEST["ResourceConfig"], "VolumeSizeInGB": 30}), ["volume: 50, not 30"]),
        (changed(ResourceConfig={**REQUEST["ResourceConfig"], "InstanceCount": 1}), ["instances: 2, not 1"]),
        (changed(VpcConfig=None), ["subnets: s-1, s-2, not none", "security groups: sg-1, not none"]),
        (changed(EnableNetworkIsolation=False), ["network isolation: True, not none"]),
    ],
)
def test_what_differs(last: Mapping[str, Any], why: list[str]) -> None:
    assert list(differences(REQUEST, last)) == why


def job(name: str, **more: Any) -> Mapping[str, Any]:
    return {
        "TrainingJobName": name, "TrainingJobArn": f"arn:aws:sagemaker:eu-central-1:1:training-job/{name}",
        "TrainingJobStatus": "Completed", "SecondaryStatus": "Completed", "CreationTime": 1e9, "StoppingCondition": {},
        "ModelArtifacts": {"S3ModelArtifacts": ""}, **changed(**more),
    }  # fmt: skip


def test_the_closest_of_those_there_are_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    with platform() as told, caplog.at_level(logging.INFO, "moorage"):
        sagemaker = boto3.client("sagemaker", endpoint_url=told.endpoint, region_name="eu-central-1")
        tell(REQUEST, sagemaker)
        assert "no instances are warm" in caplog.text
        there = {
            "far": job("far", RoleArn="arn:aws:iam::1:role/b", VpcConfig=None),
            "near": job("near", RoleArn="arn:aws:iam::1:role/b"),
        }
        summaries = [
            {key: one[key] for key in ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingJobStatus")}
            for one in there.values()
        ]  # fmt: skip
        told.script("SageMaker.ListTrainingJobs", {"TrainingJobSummaries": summaries})
        told.answers["SageMaker.DescribeTrainingJob"] = lambda body: there[body["TrainingJobName"]]
        tell(REQUEST, sagemaker)
        assert "the instances that near left warm are not for this job: RoleArn" in caplog.text
        there["near"] = job("near")
        tell(REQUEST, sagemaker)
        assert "takes the instances that near left warm" in caplog.text
        asked = [body for operation, body in told.bodies if operation.endswith("ListTrainingJobs")]
        assert asked[-1]["WarmPoolStatusEquals"] == "Available"
        told.script("SageMaker.ListTrainingJobs", refusal("AccessDeniedException", "no"))
        with pytest.raises(CloudError, match="cannot look for warm pools"):
            tell(REQUEST, sagemaker)
        sagemaker.close()
