"""An endpoint as it is asked for, as requests: CreateModel, CreateEndpointConfig, autoscaling. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from moorage.cloud.finding import Finding, stops
from moorage.cloud.model import check
from moorage.contract.s3 import SCHEME
from moorage.errors import ConfigError

VARIANT = "AllTraffic"
SHORTEST, LONGEST = 60, 3600
"""Seconds: what AWS takes for either timeout."""

DOWNLOAD, LOAD = 50e6, 25e6
"""Bytes per second, at the least: from S3 to the instance, unpacked; from its disk to the device. Assumed, and low."""

LONGEST_NAME = 43
"""Letters of an endpoint's name: its models and configurations have a time behind it, and may have 63."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An endpoint as it was asked for. image, model, role: where they are not the job's.

    most: instances, above `least` for autoscaling. target: requests per instance and minute that autoscaling aims at.
    startup: seconds for loading, None is by the model's size.
    """

    endpoint: str
    instance_type: str
    least: int = 1
    most: int | None = None
    target: float = 1000.0
    image: str | None = None
    model: str | None = None
    role: str | None = None
    environment: Mapping[str, str]
    startup: int | None = None


@dataclass(frozen=True, kw_only=True)
class Requests:
    """name: of the model and of the endpoint's configuration, new each time. scaling: none where it is not wanted."""

    name: str
    endpoint: str
    model: Mapping[str, Any]
    config: Mapping[str, Any]
    scaling: tuple[tuple[str, Mapping[str, Any]], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "CreateModel": self.model, "CreateEndpointConfig": self.config,
            "CreateEndpoint": {"EndpointName": self.endpoint, "EndpointConfigName": self.name},
            **{operation: request for operation, request in self.scaling},
        }  # fmt: skip

    def findings(self) -> Iterator[Finding]:
        """What AWS would refuse, by its own model of the requests."""
        yield from check("CreateModel", self.model)
        yield from check("CreateEndpointConfig", self.config)
        yield from check("CreateEndpoint", {"EndpointName": self.endpoint, "EndpointConfigName": self.name})
        for operation, request in self.scaling:
            yield from check(operation, request, "application-autoscaling")


def timeouts(size: int) -> tuple[int, int]:
    """Seconds for downloading and for loading a model of `size` bytes: a minute or two, and what it takes at DOWNLOAD
    and LOAD, within AWS's bounds. AWS ends a start that takes longer, and has no word for why.
    """
    return tuple(  # type: ignore[return-value]
        int(min(max(base + size / pace, SHORTEST), LONGEST)) for base, pace in ((60, DOWNLOAD), (120, LOAD))
    )


def requests(wanted: Wanted, job: Mapping[str, Any], size: int, now: datetime) -> Requests:
    """Pure. job: what DescribeTrainingJob answers, empty where no job is named. size: of the model, in bytes.

    Raises ConfigError where something is said by neither.
    """
    image = wanted.image or (job.get("AlgorithmSpecification") or {}).get("TrainingImage")
    role = wanted.role or job.get("RoleArn")
    for what, value, flag in (("image", image, "--image-uri"), ("role", role, "--role")):
        if not value:
            raise ConfigError(f"an endpoint wants the {what}", why="no job says it", fix=f"name it by {flag}")
    if len(wanted.endpoint) > LONGEST_NAME:
        raise ConfigError(f"the endpoint's name {wanted.endpoint} is too long", fix=f"{LONGEST_NAME} letters at most")
    if wanted.most is not None and wanted.most < wanted.least:
        raise ConfigError(f"--max {wanted.most} is less than --min {wanted.least}", fix="give at least as many")
    name = f"{wanted.endpoint}-{now.astimezone(UTC):%Y%m%d-%H%M%S-}{now.microsecond // 1000:03d}"
    download, loading = timeouts(size)
    tags = [{"Key": "moorage:endpoint", "Value": wanted.endpoint}]
    container = {"Image": image, **_data(wanted, job), "Environment": dict(wanted.environment)}
    variant = {
        "VariantName": VARIANT, "ModelName": name, "InstanceType": wanted.instance_type,
        "InitialInstanceCount": wanted.least, "InitialVariantWeight": 1.0,
        "ModelDataDownloadTimeoutInSeconds": download,
        "ContainerStartupHealthCheckTimeoutInSeconds": wanted.startup or loading,
    }  # fmt: skip
    placed = {"VpcConfig": job["VpcConfig"]} if job.get("VpcConfig") else {}
    isolated = {"EnableNetworkIsolation": True} if job.get("EnableNetworkIsolation") else {}
    return Requests(
        name=name, endpoint=wanted.endpoint,
        model={
            "ModelName": name, "PrimaryContainer": container, "ExecutionRoleArn": role, "Tags": tags, **placed,
            **isolated,
        },
        config={"EndpointConfigName": name, "ProductionVariants": [variant], "Tags": tags},
        scaling=_scaling(wanted),
    )  # fmt: skip


def model_of(wanted: Wanted, job: Mapping[str, Any]) -> str:
    """Where the model lies in S3. Raises ConfigError."""
    found = wanted.model or (job.get("ModelArtifacts") or {}).get("S3ModelArtifacts")
    if not found or not str(found).startswith(SCHEME):
        raise ConfigError(
            f"{found!r} is no model in S3" if found else "an endpoint wants a model",
            fix="name the job that made it, or its place by --model: s3://BUCKET/KEY/model.tar.gz, or a prefix",
        )
    return str(found)


def _data(wanted: Wanted, job: Mapping[str, Any]) -> dict[str, Any]:
    uri = model_of(wanted, job)
    if uri.endswith(".tar.gz"):
        return {"ModelDataUrl": uri}
    source = {"S3Uri": uri.rstrip("/") + "/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    return {"ModelDataSource": {"S3DataSource": source}}


def _scaling(wanted: Wanted) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    if wanted.most is None or wanted.most == wanted.least:
        return ()
    scaled = _scaled(wanted.endpoint)
    return (
        ("RegisterScalableTarget", {**scaled, "MinCapacity": wanted.least, "MaxCapacity": wanted.most}),
        (
            "PutScalingPolicy",
            {
                **scaled, "PolicyName": f"{wanted.endpoint}-requests", "PolicyType": "TargetTrackingScaling",
                "TargetTrackingScalingPolicyConfiguration": {
                    "TargetValue": wanted.target,
                    "PredefinedMetricSpecification": {
                        "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
                    },
                },
            },
        ),
    )  # fmt: skip


def _scaled(endpoint: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker", "ResourceId": f"endpoint/{endpoint}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }  # fmt: skip


def refuse(findings: Iterator[Finding]) -> None:
    """Raises ConfigError where one of them stops it."""
    found = list(findings)
    if stops(found):
        raise ConfigError(
            "the endpoint is not created: the request is wrong",
            why="; ".join(f"{one.place}: {one.what}" for one in found if one.severity == "error"),
            fix=found[0].fix or "correct it",
        )
