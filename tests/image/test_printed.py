"""What `moorage submit --print` prints for the SageMaker SDKs, run in them: each asks for the same job.

The requests are taken where they arrive, at a server that speaks AWS's API.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from image.clients.environments import environment
from image.clients.local import SDK_CONFIG
from moorage.cloud.printing import PRINTERS
from moorage.cloud.request import Group, S3Channel, Submission, training_job
from moorage.errors import ConfigError
from platform_api import Platform, platform

REGION = "eu-central-1"
IMAGE = f"111122223333.dkr.ecr.{REGION}.amazonaws.com/moorage@sha256:{'0' * 64}"


def submission(number: int, **more: Any) -> Submission:
    given = {
        "name": f"digits{number}-2026-01-31-12-00-00-123", "image": IMAGE, "volume_gb": 50,
        "role": "arn:aws:iam::123456789012:role/training", "output": "s3://bucket/output",
        "instance_type": "ml.g5.2xlarge", "max_run": 3600, **more,
    }  # fmt: skip
    return Submission(**given)


EVERYTHING = submission(
    0, program="train.py", code="s3://bucket/code/0/sourcedir.tar.gz", hosts=2, spot=True, max_wait=7200, retries=2,
    hyperparameters={"lr": "0.1", "optimizer": '"adam"', "layers": "[1, 2]", "path": "it's \\n"},
    environment={"MOORAGE_GRACE": "100", "MOORAGE_LINEAGE": '{"image": "x"}'},
    channels={
        "train": S3Channel(uri="s3://bucket/digits", mode="FastFile", sharded=True, content_type="text/csv"),
        "val": S3Channel(uri="s3://bucket/val", mode="Pipe"),
    },
    metrics={"val_loss": r"#metric .*val_loss=(\S+)"}, checkpoints="s3://bucket/checkpoints", tags={"team": "a"},
    subnets=("subnet-1", "subnet-2"), security_groups=("sg-1",), encrypt_traffic=True, kms_key="key",
    volume_kms_key="other-key", uncompressed=True,
)  # fmt: skip
SUBMISSIONS = (
    EVERYTHING,
    submission(1, keep_alive=600),
    submission(
        2, instance_type="", channels={"train": S3Channel(uri="s3://bucket/digits", groups=("gpu",))},
        groups=(
            Group(name="gpu", instance_type="ml.g5.xlarge", hosts=2),
            Group(name="cpu", instance_type="ml.c5.xlarge", hosts=1),
        ),
    ),
    submission(3, program="train.py", code="s3://bucket/code/0/sourcedir.tar.gz", isolation=True),
)  # fmt: skip


def asked(name: str, submissions: tuple[Submission, ...], tmp_path: Path) -> list[Mapping[str, Any]]:
    """What the printed programs ask for, run in one interpreter of that SDK."""
    printed = [PRINTERS[name](training_job(one), REGION) for one in submissions]
    with platform() as told:
        arn = f"arn:aws:sagemaker:{REGION}:123456789012:training-job/"
        told.answers["SageMaker.CreateTrainingJob"] = lambda body: {"TrainingJobArn": arn + body["TrainingJobName"]}
        told.answers["SageMaker.DescribeTrainingJob"] = lambda body: {
            "TrainingJobName": body["TrainingJobName"], "TrainingJobArn": arn + body["TrainingJobName"],
            "TrainingJobStatus": "InProgress", "SecondaryStatus": "Starting", "CreationTime": 1e9,
            "ModelArtifacts": {"S3ModelArtifacts": ""},
        }  # fmt: skip
        return _run(name.removeprefix("sdk-"), "\n".join(printed), told, tmp_path)


def _run(version: str, program: str, told: Platform, tmp_path: Path) -> list[Mapping[str, Any]]:
    (tmp_path / "printed.py").write_text(program)
    (tmp_path / "config.yaml").write_text(json.dumps(SDK_CONFIG))
    env = {
        "AWS_ENDPOINT_URL": told.endpoint, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path), "SAGEMAKER_USER_CONFIG_OVERRIDE": str(tmp_path / "config.yaml"),
        "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    command = [environment(version), "printed.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [body for operation, body in told.bodies if operation == "SageMaker.CreateTrainingJob"]


def test_the_estimator_of_sdk_v2_asks_for_the_same_job(tmp_path: Path) -> None:
    submissions = (*SUBMISSIONS, submission(4, program="train.py", code="s3://b/c", arguments=("--verbose", "1")))
    found = asked("sdk-v2", submissions, tmp_path)
    meant = [{**training_job(one), "ProfilerConfig": {"DisableProfiler": True}} for one in submissions]
    assert found == meant


def test_the_model_trainer_of_sdk_v3_asks_for_the_same_job_under_a_name_of_its_own(tmp_path: Path) -> None:
    found = asked("sdk-v3", SUBMISSIONS, tmp_path)
    for one, submitted in zip(found, SUBMISSIONS, strict=True):
        meant = training_job(submitted)
        meant["OutputDataConfig"].setdefault("CompressionType", "GZIP")
        meant.setdefault("HyperParameters", {})
        assert one["TrainingJobName"].startswith(submitted.name.partition("-")[0])
        assert one == {**meant, "TrainingJobName": one["TrainingJobName"]}


def test_what_model_trainer_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="make them hyperparameters"):
        PRINTERS["sdk-v3"](training_job(submission(0, program="train.py", arguments=("--verbose",))), REGION)
