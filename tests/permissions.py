"""docs/iam.md, made of the calls that the code makes: what each command, and the job's role, must be allowed.

    python tests/permissions.py            prints it
    python tests/permissions.py --write    writes it

A call of boto3 is found by its name in the source, without running it. Which IAM action it takes is AWS's service
authorization reference: https://docs.aws.amazon.com/service-authorization/latest/reference/reference.html
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "container" / "moorage"
PAGE = ROOT / "docs" / "iam.md"

SERVICES = ("sagemaker", "s3", "logs", "sts", "ecr", "application-autoscaling", "sagemaker-runtime", "pricing")
NOT_CALLS = {"search"}
"""Names of operations that are methods of other things here, as of a regular expression."""

TRANSFERS = {
    "download_file": ("head_object", "get_object"), "download_fileobj": ("head_object", "get_object"),
    "upload_file": ("put_object", "abort_multipart_upload"), "upload_fileobj": ("put_object", "abort_multipart_upload"),
}  # fmt: skip
"""boto3's own methods, by the calls they make."""

ACTIONS = {
    "s3:HeadObject": ("s3:GetObject", "s3:ListBucket"), "s3:HeadBucket": ("s3:ListBucket",),
    "s3:ListObjectsV2": ("s3:ListBucket",), "s3:CreateMultipartUpload": ("s3:PutObject",),
    "s3:UploadPart": ("s3:PutObject",), "s3:CompleteMultipartUpload": ("s3:PutObject",),
    "s3:CopyObject": ("s3:PutObject", "s3:GetObject"), "s3:DeleteObjects": ("s3:DeleteObject",),
    "s3:ListMultipartUploads": ("s3:ListBucketMultipartUploads",),
    "s3:ListParts": ("s3:ListMultipartUploadParts",),
}  # fmt: skip
"""Where the action has another name. Without s3:ListBucket, what is not there looks like what is denied."""

ALONG = {
    "sagemaker:CreateTrainingJob": ("iam:PassRole", "sagemaker:AddTags"),
    "sagemaker:CreateHyperParameterTuningJob": ("iam:PassRole", "sagemaker:AddTags"),
    "sagemaker:CreateModel": ("iam:PassRole", "sagemaker:AddTags"),
    "sagemaker:CreateEndpointConfig": ("sagemaker:AddTags",),
    "application-autoscaling:RegisterScalableTarget": (
        "iam:CreateServiceLinkedRole", "sagemaker:DescribeEndpoint", "sagemaker:DescribeEndpointConfig",
        "sagemaker:UpdateEndpointWeightsAndCapacities", "cloudwatch:PutMetricAlarm", "cloudwatch:DescribeAlarms",
        "cloudwatch:DeleteAlarms",
    ),
}  # fmt: skip
"""What AWS asks for beside the call."""

PUSHED = (
    "ecr:BatchCheckLayerAvailability", "ecr:InitiateLayerUpload", "ecr:UploadLayerPart", "ecr:CompleteLayerUpload",
    "ecr:PutImage",
)  # fmt: skip
"""What the docker engine asks ECR's registry for; no code of ours calls it."""

COMMANDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "`moorage submit`": (("cloud/submit.py", "cloud/warm.py", "cloud/aws.py"), ()),
    "`moorage tune`": (("cloud/tune.py", "cloud/submit.py", "cloud/aws.py"), ()),
    "`moorage status`, `logs`, `stop`, `list`": (("cloud/watching.py", "cloud/logs.py"), ()),
    "`moorage report`, `compare` of jobs by their names": (
        ("cloud/fetched.py", "cloud/instances.py"), ("sagemaker:DescribeTrainingJob",)
    ),
    "`moorage deploy`, `undeploy`": (
        ("cloud/deploy.py", "cloud/logs.py"), ("sagemaker:DescribeTrainingJob",)
    ),
    "`moorage predict --endpoint`": (("cli/serve.py",), ()),
    "`moorage push`, `make push`, `make scan`": (("cloud/ecr.py", "cloud/aws.py"), PUSHED),
    "`moorage run --checkpoints s3://...`, `moorage doctor`": (("rehearsal/prefix.py", "rehearsal/doctor.py"), ()),
    "`moorage plan --fetch-prices`": (("cloud/instances.py",), ()),
    "`moorage inspect s3://...`": ((), ("s3:ListBucket", "s3:GetObject")),
}  # fmt: skip
"""By command: the modules whose calls it makes, and what else it takes."""

JOB_MODULES = (
    "contract/source.py", "checkpoint/s3/bucket.py", "checkpoint/s3/download.py", "checkpoint/s3/upload.py",
)  # fmt: skip
PLATFORM = (
    "ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer",
    "logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams",
    "cloudwatch:PutMetricData", "s3:GetObject", "s3:ListBucket", "s3:PutObject", "s3:DeleteObject",
)  # fmt: skip
"""What the platform does in the role's name: image, log, metrics, channels, checkpoints, output."""


@cache
def operations() -> Mapping[str, tuple[str, str]]:
    """By the name of boto3's method: the service's prefix in IAM, and the operation."""
    import botocore.session
    from botocore import xform_name

    session, found = botocore.session.get_session(), {}
    for service in SERVICES:
        prefix = service.removesuffix("-runtime")
        for operation in session.get_service_model(service).operation_names:
            found[xform_name(operation)] = (prefix, operation)
    return found


def actions(module: str) -> set[str]:
    """IAM actions of the calls in a module, given by its path in the package."""
    found: set[str] = set()
    for name in _calls(ast.parse((HOME / module).read_text(encoding="utf-8"))):
        prefix, operation = operations()[name]
        found.update(ACTIONS.get(f"{prefix}:{operation}", (f"{prefix}:{operation}",)))
    return found


def _calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        # Also one that is handed on to be called, or named: `bucket.call("put_object", ...)`, `get_paginator(...)`.
        name = node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None
        if name in TRANSFERS:
            yield from TRANSFERS[name]
        elif isinstance(name, str) and name in operations() and name not in NOT_CALLS:
            yield name


def needed(command: str) -> set[str]:
    modules, more = COMMANDS[command]
    found = set(more)
    for module in modules:
        found |= actions(module)
    return _with_along(found)


def of_the_job() -> set[str]:
    found = set(PLATFORM)
    for module in JOB_MODULES:
        found |= actions(module)
    return found


def _with_along(found: set[str]) -> set[str]:
    return found | {more for action in found for more in ALONG.get(action, ())}


def _resource(action: str, *, of_job: bool = False) -> str | list[str]:
    """The least that the action can be given on."""
    service, _, name = action.partition(":")
    arn = f"arn:aws:{service}:REGION:ACCOUNT"
    if action in ("iam:PassRole",):
        return "arn:aws:iam::ACCOUNT:role/ROLE"
    if action == "iam:CreateServiceLinkedRole":
        return "arn:aws:iam::*:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*"
    if service == "s3":
        return "arn:aws:s3:::BUCKET" if name.startswith("List") and "Parts" not in name else "arn:aws:s3:::BUCKET/*"
    if service == "logs":
        return f"{arn}:log-group:/aws/sagemaker/*"
    if service == "ecr" and name != "GetAuthorizationToken":
        return f"{arn}:repository/REPOSITORY"
    if service == "sagemaker" and not name.startswith("List"):
        return _sagemaker(name, arn)
    return "*"


def _sagemaker(name: str, arn: str) -> str | list[str]:
    if name == "AddTags":
        tagged = ("training-job", "hyper-parameter-tuning-job", "model", "endpoint-config")
        return [f"{arn}:{kind}/*" for kind in tagged]
    if name in ("CreateEndpoint", "UpdateEndpoint"):
        return [f"{arn}:endpoint/*", f"{arn}:endpoint-config/*"]
    kinds = ("HyperParameterTuningJob", "TrainingJob", "EndpointConfig", "Endpoint", "Model")
    slugs = ("hyper-parameter-tuning-job", "training-job", "endpoint-config", "endpoint", "model")
    return next(f"{arn}:{slug}/*" for kind, slug in zip(kinds, slugs, strict=True) if kind in name)


def policy(found: Iterable[str]) -> dict[str, Any]:
    """One statement for each resource."""
    by_resource: dict[str, list[str]] = {}
    for action in sorted(found):
        by_resource.setdefault(json.dumps(_resource(action)), []).append(action)
    statements = []
    for resource, allowed in sorted(by_resource.items()):
        statement: dict[str, Any] = {"Effect": "Allow", "Action": allowed, "Resource": json.loads(resource)}
        if "iam:PassRole" in allowed:
            statement["Condition"] = {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
        statements.append(statement)
    return {"Version": "2012-10-17", "Statement": statements}


def page() -> str:
    parts = [_BEGIN, "## Who runs the commands\n"]
    parts.append("| command | actions |\n|---|---|")
    parts += [f"| {command} | {', '.join(f'`{one}`' for one in sorted(needed(command)))} |" for command in COMMANDS]
    everything = set().union(*map(needed, COMMANDS))
    parts.append("\nFor all of them; leave out what is not used:\n\n```json\n" + _json(policy(everything)) + "\n```\n")
    parts.append("## The job's role\n\n" + _JOB)
    parts.append("```json\n" + _json(policy(of_the_job())) + "\n```\n")
    parts.append(_END)
    return "\n".join(parts)


def _json(value: object) -> str:
    return json.dumps(value, indent=2)


_BEGIN = """# IAM

What to allow, and no more. Made by `python tests/permissions.py --write` of the calls in the code, and kept so
by a test. Put your own in place of REGION, ACCOUNT, BUCKET, REPOSITORY and ROLE;
in China and GovCloud the partition `aws` is another.

An error that AWS refuses names the action and the resource that are missing.
"""
_JOB = """Whom SageMaker acts as: it pulls the image, brings the data, and takes logs, metrics, checkpoints
and models away in this role, and the container has its credentials. It trusts
`sagemaker.amazonaws.com`.
"""
_END = """Beside it, where they are used: `kms:Decrypt`, `kms:GenerateDataKey` and `kms:CreateGrant` on the
keys; `ec2:CreateNetworkInterface`, `ec2:CreateNetworkInterfacePermission`, `ec2:DeleteNetworkInterface`,
`ec2:DeleteNetworkInterfacePermission`, `ec2:DescribeNetworkInterfaces`, `ec2:DescribeVpcs`,
`ec2:DescribeDhcpOptions`, `ec2:DescribeSubnets` and `ec2:DescribeSecurityGroups` in a VPC; and
`sagemaker-mlflow:*`
on a managed MLflow server.

Not tried against IAM, which only AWS has: the calls are read from the code, the actions they take from AWS's
service authorization reference.
"""

if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
