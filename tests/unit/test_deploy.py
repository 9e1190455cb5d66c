"""`moorage deploy`, `moorage undeploy`: against moto's server, with endpoints that take their time in front of it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from aws import called
from moorage.cli import deploy as command
from moorage.cli import main
from moorage.cloud.endpoint import Wanted, requests, timeouts
from moorage.errors import ConfigError
from platform_api import Platform, platform, refusal
from support import hears_ctrl_c

REGION = "eu-central-1"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/training"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/moorage@sha256:{'0' * 64}"
JOB = "digits-2026"
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
MODEL = "s3://bucket/digits-2026/output/model.tar.gz"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    monkeypatch.setattr(command, "SECONDS", (0.02, 0.05))
    with platform() as made:
        called(monkeypatch, made.endpoint, REGION)
        yield made


@pytest.fixture
def sagemaker(told: Platform) -> Any:
    """With a job that has completed, and its model in S3."""
    given = {"endpoint_url": told.endpoint, "region_name": REGION}
    s3 = boto3.client("s3", **given)
    s3.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket="bucket", Key=MODEL.removeprefix("s3://bucket/"), Body=b"0" * 1000)
    client = boto3.client("sagemaker", **given)
    client.create_training_job(
        TrainingJobName=JOB, RoleArn=ROLE,
        AlgorithmSpecification={"TrainingInputMode": "File", "TrainingImage": IMAGE},
        OutputDataConfig={"S3OutputPath": "s3://bucket"}, StoppingCondition={"MaxRuntimeInSeconds": 60},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
    )  # fmt: skip
    return client


def statuses(told: Platform, *names: str, reason: str = "") -> None:
    """What DescribeEndpoint says from now on, of the configuration that was asked for last."""

    def answer(name: str) -> Mapping[str, Any]:
        asked = [body for operation, body in told.bodies if operation.endswith(("CreateEndpoint", "UpdateEndpoint"))]
        return {
            "EndpointName": "digits", "EndpointArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/digits",
            "EndpointConfigName": asked[-1]["EndpointConfigName"], "EndpointStatus": name, "CreationTime": 1e9,
            "LastModifiedTime": 1e9, **({"FailureReason": reason} if reason else {}),
        }  # fmt: skip

    left = list(names)

    def describe(_: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if not told.asked["SageMaker.CreateEndpoint"] + told.asked["SageMaker.UpdateEndpoint"]:
            return None
        return answer(left.pop(0) if len(left) > 1 else left[0])

    told.answers["SageMaker.DescribeEndpoint"] = describe


def names(client: Any) -> tuple[list[str], list[str], list[str]]:
    return (
        [one["EndpointName"] for one in client.list_endpoints()["Endpoints"]],
        [one["EndpointConfigName"] for one in client.list_endpoint_configs()["EndpointConfigs"]],
        [one["ModelName"] for one in client.list_models()["Models"]],
    )


# The requests


def wanted(**more: Any) -> Wanted:
    return Wanted(**{"endpoint": "digits", "instance_type": "ml.p3.2xlarge", "environment": {}, **more})


TRAINED = {
    "AlgorithmSpecification": {"TrainingImage": IMAGE}, "RoleArn": ROLE,
    "ModelArtifacts": {"S3ModelArtifacts": MODEL},
}  # fmt: skip


@pytest.mark.parametrize(
    ("size", "seconds"),
    [(0, (60, 120)), (10**9, (80, 160)), (70 * 10**9, (1460, 2920)), (10**13, (3600, 3600))],
)
def test_timeouts_go_by_the_size_of_the_model(size: int, seconds: tuple[int, int]) -> None:
    assert timeouts(size) == seconds


@pytest.mark.parametrize(
    "more",
    [
        {}, {"least": 2, "most": 8}, {"environment": {"MOORAGE_MAX_BATCH_SIZE": "32"}}, {"startup": 600},
        {"model": "s3://bucket/model/"}, {"endpoint": "d" * 43},
    ],
)  # fmt: skip
def test_requests_are_as_aws_s_model_of_them(more: Mapping[str, Any]) -> None:
    made = requests(wanted(**more), TRAINED, 10**9, NOW)
    assert list(made.findings()) == []
    assert len(made.name) <= 63


def test_what_the_job_says_is_taken_over() -> None:
    job = {**TRAINED, "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["s-1"]}, "EnableNetworkIsolation": True}
    made = requests(wanted(), job, 0, NOW)
    assert made.name == "digits-20261126-120000-000"
    assert made.model["PrimaryContainer"]["Image"] == IMAGE
    assert made.model["VpcConfig"] == job["VpcConfig"] and made.model["EnableNetworkIsolation"] is True
    files = requests(wanted(model="s3://bucket/model"), job, 0, NOW).model["PrimaryContainer"]["ModelDataSource"]
    assert files["S3DataSource"] == {
        "S3Uri": "s3://bucket/model/", "S3DataType": "S3Prefix", "CompressionType": "None",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "job", "words"),
    [
        ({}, {}, "an endpoint wants the image"),
        ({"image": IMAGE}, {}, "an endpoint wants the role"),
        ({"image": IMAGE, "role": ROLE}, {}, "an endpoint wants a model"),
        ({"model": "/local"}, TRAINED, "is no model in S3"),
        ({"least": 3, "most": 2}, TRAINED, "--max 2 is less than --min 3"),
        ({"endpoint": "d" * 44}, TRAINED, "is too long"),
    ],
)
def test_bad_input(more: Mapping[str, Any], job: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        requests(wanted(**more), job, 0, NOW)


def test_an_instance_type_that_aws_has_not(sagemaker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "digits", "--job", JOB, "--instance-type", "ml.nothing"]) == 78
    assert "ProductionVariants[0].InstanceType" in capsys.readouterr().err
    assert names(sagemaker) == ([], [], [])


# From the job to the endpoint, and away again


def test_deployed_scaled_updated_and_removed(
    told: Platform, sagemaker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses(told, "Creating", "Creating", "InService")
    argv = ["deploy", "digits", "--job", JOB, "--instance-type", "ml.p3.2xlarge", "--max", "4", "--requests", "600"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out == f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/digits\n"
    assert err.count("digits is Creating") == 1 and "digits is InService" in err and "billed until" in err
    (endpoint,), (config,), (model,) = names(sagemaker)
    assert endpoint == "digits" and config == model
    made = sagemaker.describe_model(ModelName=model)
    assert made["PrimaryContainer"]["ModelDataUrl"] == MODEL and made["PrimaryContainer"]["Image"] == IMAGE
    scaling = boto3.client("application-autoscaling", endpoint_url=told.endpoint, region_name=REGION)
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 4)
    (policy,) = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 600

    told.answers["SageMaker.UpdateEndpoint"] = lambda _: {"EndpointArn": "arn:aws:sagemaker:::endpoint/digits"}
    statuses(told, "InService", "Updating", "InService")
    assert main(["deploy", "digits", "--job", JOB, "--instance-type", "ml.c5.large", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["instance_type"] == "ml.c5.large"
    assert len(names(sagemaker)[1]) == 2

    sagemaker.create_model(
        ModelName="digits-of-another", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": IMAGE}
    )  # fmt: skip
    assert main(["undeploy", "digits"]) == 0
    assert capsys.readouterr().out.count("removed ") == 5
    assert names(sagemaker) == ([], [], ["digits-of-another"])
    told.answers.clear()
    assert main(["undeploy", "digits"]) == 77
    assert "there is no endpoint digits" in capsys.readouterr().err


def test_what_fails_is_taken_back_and_the_containers_words_are_shown(
    told: Platform, sagemaker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = boto3.client("logs", endpoint_url=told.endpoint, region_name=REGION)
    group = {"logGroupName": "/aws/sagemaker/Endpoints/digits"}
    logs.create_log_group(**group)
    logs.create_log_stream(**group, logStreamName="AllTraffic/i-1")
    now = int(1000 * datetime.now(UTC).timestamp())
    said = [{"timestamp": now, "message": "moorage: exit code 72"}]
    logs.put_log_events(**group, logStreamName="AllTraffic/i-1", logEvents=said)
    statuses(told, "Creating", "Failed", reason="The primary container did not pass the ping health check.")
    assert main(["deploy", "digits", "--job", JOB, "--instance-type", "ml.p3.2xlarge"]) == 77
    err = capsys.readouterr().err
    assert "did not pass the ping health check" in err and "moorage: exit code 72" in err
    assert "taken back: nothing of it is left" in err
    assert names(sagemaker) == ([], [], [])


def test_an_update_that_fails_leaves_the_endpoint(
    told: Platform, sagemaker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses(told, "InService")
    argv = ["deploy", "digits", "--job", JOB, "--instance-type", "ml.p3.2xlarge"]
    assert main(argv) == 0
    before = names(sagemaker)
    told.answers["SageMaker.UpdateEndpoint"] = lambda _: {"EndpointArn": "arn:aws:sagemaker:::endpoint/digits"}
    config = before[1][0]
    rolled = {
        "EndpointName": "digits", "EndpointArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/digits",
        "EndpointConfigName": config, "CreationTime": 1e9, "LastModifiedTime": 1e9,
    }  # fmt: skip
    told.script("SageMaker.DescribeEndpoint", *({**rolled, "EndpointStatus": s} for s in ("InService", "Updating", "RollingBack", "InService")))  # fmt: skip # noqa: E501
    assert main(argv) == 77
    err = capsys.readouterr().err
    assert "digits did not come into service" in err and "the endpoint is as it was" in err
    assert names(sagemaker) == before


def test_a_quota_is_named_and_nothing_is_left(
    told: Platform, sagemaker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "The account-level service limit 'ml.p3.2xlarge for endpoint usage' is 0 Instances"
    told.script("SageMaker.CreateEndpoint", refusal("ResourceLimitExceeded", message))
    assert main(["deploy", "digits", "--job", JOB, "--instance-type", "ml.p3.2xlarge"]) == 77
    err = capsys.readouterr().err
    assert "ml.p3.2xlarge for endpoint usage" in err and "Service Quotas" in err
    assert names(sagemaker) == ([], [], [])


def test_a_job_that_has_not_completed_has_no_model(
    told: Platform, sagemaker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"TrainingJobName": JOB, "TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"}
    told.script("SageMaker.DescribeTrainingJob", found)
    assert main(["deploy", "digits", "--job", JOB, "--instance-type", "ml.p3.2xlarge"]) == 77
    assert "has no model to deploy" in capsys.readouterr().err


def test_dry_run_creates_nothing(sagemaker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["deploy", "digits", "--job", JOB, "--instance-type", "ml.p3.2xlarge", "-e", "MOORAGE_WORKERS=2"]
    assert main([*argv, "--dry-run"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["CreateModel"]["PrimaryContainer"]["Environment"] == {"MOORAGE_WORKERS": "2"}
    assert names(sagemaker) == ([], [], [])
    assert main([*argv, "-e", "nothing"]) == 78


def test_ctrl_c_says_how_to_remove_it(told: Platform, sagemaker: Any) -> None:
    statuses(told, "Creating")
    argv = ["deploy", "digits", "--job", JOB, "--instance-type", "ml.p3.2xlarge"]
    process = subprocess.Popen(hears_ctrl_c(*argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while "is Creating" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130 and "moorage undeploy digits" in err and "Traceback" not in err
    assert names(sagemaker)[0] == ["digits"]
