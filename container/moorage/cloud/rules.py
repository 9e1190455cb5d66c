"""What people trip over with CreateTrainingJob: refused by AWS after minutes, or paid for and of no use.

What AWS's model of the request says is checked by `model.check`; here is what only its documentation says.
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from moorage.cloud.finding import Finding
from moorage.cloud.request import Submission, hyperparameters
from moorage.contract.secrets import is_secret_key, redact

STORAGE = re.compile(r"ml\.(g4dn|g5|g[67]e?|gr6|p3dn|p4de?|p5e?n?|p6[a-z-]*|trn\d\w*|[cmr]\d\w*d)\.")
"""Types with NVMe storage of their own, in place of the volume."""

WARM = 3600
"""Seconds that instances may be kept warm, at most."""

MOST_VOLUME_GB = 16_384


def findings(job: Submission) -> list[Finding]:
    return [
        *_image(job), *_spot(job), *_warm(job), *_instances(job), *_secrets(job), *_data(job), *_limits(job)
    ]  # fmt: skip


def _image(job: Submission) -> Iterator[Finding]:
    place = "AlgorithmSpecification.TrainingImage"
    if not job.image:
        yield Finding(
            code="image-missing", place=place, what="no image is named",
            fix="push one by `moorage push`, and give its URI: --image-uri, or image in [submit]",
        )  # fmt: skip
    elif ".dkr.ecr." not in job.image:
        yield Finding(
            code="image-not-ecr", place=place, what=f"the image {job.image} is not in ECR",
            why="SageMaker pulls training images from ECR, unless the job's VPC has a private registry",
            fix="push it by `moorage push`",
        )  # fmt: skip
    elif "@sha256:" not in job.image:
        yield Finding(
            code="image-by-tag", place=place, severity="warning", what="the image is named by a tag",
            why="a tag may move, and a job that starts again would run another image than the one that began",
            fix="give the digest that `moorage push` prints",
        )  # fmt: skip
    if not job.role:
        yield Finding(
            code="role-missing", place="RoleArn", what="no role is named",
            why="the job reads and writes S3 as that role",
            fix="give --role, its ARN or its name; docs/iam.md says what it may do",
        )  # fmt: skip


def _spot(job: Submission) -> Iterator[Finding]:
    if not job.spot:
        if job.max_wait is not None:
            yield Finding(
                code="wait-without-spot", place="StoppingCondition.MaxWaitTimeInSeconds",
                what="max_wait is given, and the job is not on Spot", why="AWS refuses it",
                fix="leave it out, or give --spot",
            )  # fmt: skip
        return
    if not job.checkpoints:
        yield Finding(
            code="spot-without-checkpoints", place="CheckpointConfig", what="the job is on Spot, without checkpoints",
            why="an interruption would lose all that was trained, and be paid for again",
            fix="leave --checkpoints out, which gives it a prefix, or name one",
        )  # fmt: skip
    if job.max_wait is not None and job.max_wait < job.max_run:
        yield Finding(
            code="wait-shorter-than-run", place="StoppingCondition.MaxWaitTimeInSeconds",
            what=f"max_wait of {job.max_wait} s is shorter than max_run of {job.max_run} s",
            why="it counts training and waiting for Spot together; AWS refuses it", fix="raise --max-wait",
        )  # fmt: skip
    if job.keep_alive:
        yield Finding(
            code="spot-warm-pool", place="ResourceConfig.KeepAlivePeriodInSeconds",
            what="a warm pool is asked for on Spot", why="Spot instances cannot be kept; AWS refuses it",
            fix="leave out --keep-alive, or --spot",
        )  # fmt: skip


def _warm(job: Submission) -> Iterator[Finding]:
    if job.keep_alive and job.keep_alive > WARM:
        yield Finding(
            code="warm-too-long", place="ResourceConfig.KeepAlivePeriodInSeconds",
            what=f"the instances are to be kept for {job.keep_alive} s", why=f"AWS keeps them for {WARM} s at most",
            fix="lower --keep-alive",
        )  # fmt: skip
    if job.keep_alive and job.groups:
        yield Finding(
            code="warm-groups", place="ResourceConfig.KeepAlivePeriodInSeconds",
            what="a warm pool is asked for with instance groups", why="AWS has none for them",
            fix="leave out --keep-alive, or give --instance-type and --hosts",
        )  # fmt: skip


def _instances(job: Submission) -> Iterator[Finding]:
    types = [group.instance_type for group in job.groups] or [job.instance_type]
    for number, name in enumerate(types):
        if not name.startswith("ml."):
            place = (
                f"ResourceConfig.InstanceGroups[{number}].InstanceType" if job.groups else "ResourceConfig.InstanceType"
            )
            yield Finding(
                code="instance-type", place=place, what=f"{name!r} is no instance type of SageMaker's",
                fix="give --instance-type, as ml.g5.2xlarge",
            )  # fmt: skip
    if job.volume_gb is not None and any(STORAGE.match(name) for name in types):
        yield Finding(
            code="volume-on-nvme", place="ResourceConfig.VolumeSizeInGB", severity="warning",
            what=f"a volume of {job.volume_gb} GB is asked for on instances with storage of their own",
            why="they have no other, and AWS refuses more than it holds", fix="leave --volume-gb out",
        )  # fmt: skip
    if job.volume_gb is not None and job.volume_gb > MOST_VOLUME_GB:
        yield Finding(
            code="volume-too-large", place="ResourceConfig.VolumeSizeInGB",
            what=f"a volume of {job.volume_gb} GB is asked for", why=f"{MOST_VOLUME_GB} GB are the most",
            fix="lower --volume-gb, or read the data by FastFile",
        )  # fmt: skip
    if len({group.name for group in job.groups}) < len(job.groups):
        yield Finding(
            code="groups-alike", place="ResourceConfig.InstanceGroups", what="two instance groups have one name",
            fix="name each once",
        )  # fmt: skip


def _secrets(job: Submission) -> Iterator[Finding]:
    for place, values in (("HyperParameters", job.hyperparameters), ("Environment", job.environment)):
        for name, value in values.items():
            if value and (is_secret_key(name) or redact(value) != value):
                yield Finding(
                    code="secret", place=f"{place}[{name!r}]", what=f"{name} looks like a secret",
                    why="it would stand in the request, in the console and in DescribeTrainingJob for good",
                    fix="let the program read it from Secrets Manager by the job's role; or allow it: --allow secret",
                )  # fmt: skip


def _data(job: Submission) -> Iterator[Finding]:
    names = {group.name for group in job.groups}
    for name, channel in job.channels.items():
        if not channel.uri:
            yield Finding(
                code="channel-not-in-s3", place=f"InputDataConfig[{name!r}]", what=f"channel {name} is not in S3",
                why="only a folder of this machine is named, which a rehearsal takes",
                fix=f"name it: --data {name}=s3://BUCKET/PREFIX, or s3 in its table of the job file",
            )  # fmt: skip
        for group in channel.groups:
            if group not in names:
                yield Finding(
                    code="channel-group", place=f"InputDataConfig[{name!r}]",
                    what=f"channel {name} is for the instance group {group}, which there is not",
                    fix=f"name one of {', '.join(sorted(names)) or 'none: the job has no groups'}",
                )  # fmt: skip
    if job.isolation and "code" in job.channels and job.code:
        yield Finding(
            code="channel-code", place="InputDataConfig['code']", what="a channel of the data is named code",
            why="without a network the program comes by a channel of that name", fix="give it another name",
        )  # fmt: skip
    if job.isolation and not job.code and job.program:
        yield Finding(
            code="isolation-without-code", place="EnableNetworkIsolation",
            what="the container has no network, and nothing brings its program",
            why="S3 cannot be reached from it", fix="give --source, so that the code becomes a channel",
        )  # fmt: skip


def _limits(job: Submission) -> Iterator[Finding]:
    if len(hyperparameters(job)) > 100:
        yield Finding(
            code="too-many-hyperparameters", place="HyperParameters",
            what=f"the job has {len(hyperparameters(job))} hyperparameters", why="100 are the most, ours included",
            fix="put some into a file of the code, or of a channel",
        )  # fmt: skip
    if len(job.metrics) > 40:
        yield Finding(
            code="too-many-metrics", place="AlgorithmSpecification.MetricDefinitions",
            what=f"the job has {len(job.metrics)} metric definitions", why="40 are the most",
            fix="give those you look at, by --metric",
        )  # fmt: skip
    if bool(job.subnets) != bool(job.security_groups):
        yield Finding(
            code="vpc-half", place="VpcConfig", what="a VPC needs subnets and security groups",
            fix="give both --subnet and --security-group, or neither",
        )  # fmt: skip
