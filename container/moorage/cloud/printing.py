"""The same request as a program of somebody else's: boto3, or the AWS command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from moorage.cloud.printing_sdk import pipeline, sdk_v2, sdk_v3, source


def boto3(request: Mapping[str, Any], region: str) -> str:
    where = f", region_name={region!r}" if region else ""
    return (
        f'import boto3\n\nsagemaker = boto3.client("sagemaker"{where})\n'
        f'job = sagemaker.create_training_job(**{source(request)})\nprint(job["TrainingJobArn"])\n'
    )


def cli(request: Mapping[str, Any], region: str) -> str:
    where = f" --region {shlex.quote(region)}" if region else ""
    return f"aws sagemaker create-training-job{where} --cli-input-json {shlex.quote(json.dumps(request, indent=2))}\n"


PRINTERS: Mapping[str, Callable[[Mapping[str, Any], str], str]] = {
    "boto3": boto3, "cli": cli, "pipeline": pipeline, "sdk-v2": sdk_v2, "sdk-v3": sdk_v3,
}  # fmt: skip
