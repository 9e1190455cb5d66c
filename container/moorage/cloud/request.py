"""CreateTrainingJob: what a `Submission` says, as the request. Pure: nothing is read, looked up or sent here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage.rehearsal.job import InputMode

CODE_CHANNEL = "code"
CODE_FILE = "sourcedir.tar.gz"
"""In the channel, and in S3: the name that SDK v2 gives it."""

ISOLATED_CODE = f"/opt/ml/input/data/{CODE_CHANNEL}/{CODE_FILE}"
"""Where a container without a network finds the code."""


@dataclass(frozen=True, kw_only=True)
class S3Channel:
    """uri: the prefix, or the one object. groups: the instance groups that are given it; all, if none is named."""

    uri: str
    mode: InputMode = "File"
    sharded: bool = False
    content_type: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Instances of one type in a heterogeneous cluster."""

    name: str
    instance_type: str
    hosts: int


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One training job, with everything that was to be looked up or uploaded.

    image: as SageMaker pulls it, by digest. role: an ARN. program: the entry point in the code; None leaves it to the
    image. code: the S3 URI of the packed code. arguments: of the program, beside the hyperparameters.
    groups: instead of instance_type and hosts. volume_gb: None where the instances bring their own storage.
    max_run, max_wait, keep_alive: seconds. retries: 0 is without RetryStrategy. output: the S3 URI below which the
    platform makes a folder under the job's name. checkpoints: S3 URI; None is without CheckpointConfig.
    metrics: name -> regex.
    """

    name: str
    image: str
    role: str
    output: str
    program: str | None = None
    code: str | None = None
    arguments: tuple[str, ...] = ()
    hyperparameters: Mapping[str, str] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    channels: Mapping[str, S3Channel] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    instance_type: str = ""
    hosts: int = 1
    groups: tuple[Group, ...] = ()
    volume_gb: int | None = None
    volume_kms_key: str | None = None
    keep_alive: int | None = None
    spot: bool = False
    max_run: int = 86_400
    max_wait: int | None = None
    retries: int = 0
    checkpoints: str | None = None
    checkpoint_path: str = "/opt/ml/checkpoints"
    kms_key: str | None = None
    uncompressed: bool = False
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    isolation: bool = False
    encrypt_traffic: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


def training_job(job: Submission) -> dict[str, Any]:
    """The request, in the order of AWS's reference. What was not said is not in it."""
    vpc = job.subnets or job.security_groups
    request: dict[str, Any] = {
        "TrainingJobName": job.name,
        "HyperParameters": hyperparameters(job),
        "AlgorithmSpecification": _algorithm(job),
        "RoleArn": job.role,
        "InputDataConfig": [_channel(name, channel) for name, channel in channels(job).items()],
        "OutputDataConfig": _output(job),
        "ResourceConfig": _resources(job),
        "VpcConfig": _given(SecurityGroupIds=list(job.security_groups), Subnets=list(job.subnets)) if vpc else None,
        "StoppingCondition": _given(MaxRuntimeInSeconds=job.max_run, MaxWaitTimeInSeconds=job.max_wait),
        "Tags": [{"Key": key, "Value": value} for key, value in job.tags.items()],
        "EnableNetworkIsolation": job.isolation or None,
        "EnableInterContainerTrafficEncryption": job.encrypt_traffic or None,
        "EnableManagedSpotTraining": job.spot or None,
        "CheckpointConfig": {"S3Uri": job.checkpoints, "LocalPath": job.checkpoint_path} if job.checkpoints else None,
        "Environment": dict(job.environment),
        "RetryStrategy": {"MaximumRetryAttempts": job.retries} if job.retries else None,
    }
    return _given(**request)


def hyperparameters(job: Submission) -> dict[str, str]:
    """Those of the program, and script mode's, by which `train` finds it."""
    script = {}
    if job.program is not None:
        script["sagemaker_program"] = job.program
    if job.code is not None:
        script["sagemaker_submit_directory"] = ISOLATED_CODE if job.isolation else job.code
    return {**script, **job.hyperparameters}


def channels(job: Submission) -> dict[str, S3Channel]:
    """Those of the data, and of the code where nothing can be fetched from S3."""
    if job.code is None or not job.isolation:
        return dict(job.channels)
    return {**job.channels, CODE_CHANNEL: S3Channel(uri=job.code)}


def _algorithm(job: Submission) -> dict[str, Any]:
    command = (*((job.program,) if job.program else ()), *job.arguments) if job.arguments else ()
    return _given(
        TrainingImage=job.image,
        TrainingInputMode="File",
        MetricDefinitions=[{"Name": name, "Regex": regex} for name, regex in job.metrics.items()],
        # The image's own `train` otherwise, which finds the program by the hyperparameters.
        ContainerEntrypoint=["train"] if command else [],
        ContainerArguments=list(command),
    )


def _channel(name: str, channel: S3Channel) -> dict[str, Any]:
    source = _given(
        S3DataType="S3Prefix",
        S3Uri=channel.uri,
        S3DataDistributionType="ShardedByS3Key" if channel.sharded else "FullyReplicated",
        InstanceGroupNames=list(channel.groups),
    )
    return _given(
        ChannelName=name, DataSource={"S3DataSource": source}, ContentType=channel.content_type, InputMode=channel.mode
    )


def _output(job: Submission) -> dict[str, Any]:
    return _given(KmsKeyId=job.kms_key, S3OutputPath=job.output, CompressionType="NONE" if job.uncompressed else None)


def _resources(job: Submission) -> dict[str, Any]:
    groups = [
        {"InstanceType": group.instance_type, "InstanceCount": group.hosts, "InstanceGroupName": group.name}
        for group in job.groups
    ]
    return _given(
        InstanceType=None if groups else job.instance_type,
        InstanceCount=None if groups else job.hosts,
        VolumeSizeInGB=job.volume_gb,
        VolumeKmsKeyId=job.volume_kms_key,
        KeepAlivePeriodInSeconds=job.keep_alive,
        InstanceGroups=groups,
    )


def _given(**members: Any) -> dict[str, Any]:
    """Without what was not said: None, and empty lists, maps and texts. Numbers stay, 0 too."""
    return {name: value for name, value in members.items() if value not in (None, [], {}, "")}
