"""`moorage submit`: a job as it is described, made into a request, checked, and sent."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from moorage.cloud import rules, warm
from moorage.cloud.aws import account, aws_errors, client, error_code, region_of
from moorage.cloud.finding import Finding, allowed
from moorage.cloud.model import check
from moorage.cloud.packing import Packed, pack
from moorage.cloud.request import CODE_FILE, Group, S3Channel, Submission, training_job
from moorage.contract.s3 import SCHEME, split
from moorage.errors import CloudError, ConfigError
from moorage.rehearsal import spelling
from moorage.rehearsal.assemble import job_name, metrics_of, program_of, settings, typed
from moorage.rehearsal.jobfile import Described
from moorage.rehearsal.jobschema import JobFile

VOLUME_GB = 30
NOBODY = "111122223333"
"""The account of a request that is only printed, where nobody said which: AWS's own in its documentation."""

log = logging.getLogger("moorage")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """packed: the code, None where the image has it. findings: errors first, once it is checked."""

    submission: Submission
    packed: Packed | None
    region: str
    findings: tuple[Finding, ...] = ()

    @property
    def request(self) -> dict[str, Any]:
        return training_job(self.submission)


@contextmanager
def plan(described: Described, now: datetime, env: Mapping[str, str], *, dry: bool) -> Iterator[Plan]:
    """As `prepared`, and checked."""
    with prepared(described, now, env, dry=dry) as made:
        found = [*rules.findings(made.submission), *check("CreateTrainingJob", made.request)]
        yield replace(made, findings=allowed(once(found), described.job.submit.allow))


@contextmanager
def prepared(described: Described, now: datetime, env: Mapping[str, str], *, dry: bool) -> Iterator[Plan]:
    """dry: nothing is asked of AWS; an account that nobody named is then NOBODY. Raises ConfigError and CloudError.

    The packed code is there until the context ends.
    """
    said = described.job
    region = region_of(env, said.submit.region) or ("us-east-1" if dry else "")
    with tempfile.TemporaryDirectory(prefix="moorage-code-") as folder:
        source, _ = program_of(said.source, said.program)
        data = [Path(table.path).expanduser() for table in said.data.values() if table.path]
        packed = pack(source, Path(folder) / CODE_FILE, leave_out=data) if source else None
        whose = _account(said, env, region, dry=dry)
        made = _submission(described, now, packed, place=f"{SCHEME}{_bucket(said, region, whose)}", whose=whose)
        yield Plan(submission=made, packed=packed, region=region)


def once(findings: list[Finding]) -> list[Finding]:
    """AWS's model says again what a rule has said better."""
    told = {one.place for one in findings if not one.code.startswith("model-")}
    nowhere = any(one.code == "channel-not-in-s3" for one in findings)
    return [
        one for one in findings
        if not one.code.startswith("model-") or not (one.place in told or (nowhere and one.place.endswith("S3Uri")))
    ]  # fmt: skip


def _account(said: JobFile, env: Mapping[str, str], region: str, *, dry: bool) -> str:
    role = said.submit.role or ""
    if role.startswith("arn:") and len(role.split(":")) > 4:
        return role.split(":")[4]
    return NOBODY if dry else account(env, region or None)


def _bucket(said: JobFile, region: str, whose: str) -> str:
    return f"{said.submit.bucket or f'sagemaker-{region}-{whose}'}/{said.submit.prefix.strip('/')}"


def _submission(described: Described, now: datetime, packed: Packed | None, *, place: str, whose: str) -> Submission:
    said, own = described.job, described.job.submit
    source, program = program_of(said.source, said.program)
    base = said.name or (Path(program).stem if program else "job")
    name = own.job_name or job_name(base, now)
    groups = tuple(Group(name=g, instance_type=kind, hosts=n) for g, kind, n in map(spelling.group, own.groups))
    types = [group.instance_type for group in groups] or [said.instance_type]
    spot = own.spot if own.spot is not None else said.max_wait is not None
    max_wait = said.max_wait if said.max_wait is not None or not spot else said.max_run + 3600
    code = f"{place}/code/{packed.digest}/{CODE_FILE}" if packed else None
    image = own.image or said.image or ""
    volume = None if any(map(rules.STORAGE.match, types)) else VOLUME_GB
    made = Submission(
        name=name,
        image=image,
        role=_role(own.role or "", whose),
        output=own.output or f"{place}/output",
        program=program,
        code=code,
        arguments=tuple(said.arguments),
        hyperparameters={key: typed(value) for key, value in said.hyperparameters.items()},
        environment={**said.environment, **settings(described)},
        channels={
            key: S3Channel(
                uri=table.s3 or "",
                mode=table.mode,
                sharded=table.sharded,
                content_type=table.content_type,
                groups=tuple(table.groups),
            )
            for key, table in said.data.items()
        },
        metrics=said.metrics or metrics_of(source, program),
        instance_type=said.instance_type,
        hosts=said.hosts,
        groups=groups,
        volume_gb=own.volume_gb or volume,
        volume_kms_key=own.volume_kms_key,
        keep_alive=None if own.keep_alive is None else int(own.keep_alive),
        spot=spot,
        max_run=int(said.max_run),
        max_wait=None if max_wait is None else int(max_wait),
        retries=said.retries,
        checkpoints=_checkpoints(said, name, place),
        checkpoint_path=said.checkpoint_path,
        kms_key=own.kms_key,
        uncompressed=own.uncompressed,
        subnets=tuple(own.subnets),
        security_groups=tuple(own.security_groups),
        isolation=own.isolation,
        encrypt_traffic=own.encrypt_traffic,
        tags=own.tags,
    )
    return replace(made, environment={**made.environment, "MOORAGE_LINEAGE": json.dumps(_lineage(made, packed))})


def _lineage(made: Submission, packed: Packed | None) -> dict[str, str]:
    """What a container cannot find out of itself; MLflow's run of the job shows it."""
    code = {"code_uri": made.code, "code_sha256": packed.digest} if made.code and packed else {}
    return {
        "image": made.image, **code, **{f"data.{name}": channel.uri for name, channel in made.channels.items()}
    }  # fmt: skip


def _role(role: str, whose: str) -> str:
    return role if not role or role.startswith("arn:") else f"arn:aws:iam::{whose}:role/{role}"


def _checkpoints(said: JobFile, name: str, place: str) -> str | None:
    own = said.submit
    if own.checkpoints == "none":
        return None
    if own.checkpoints is not None and not own.checkpoints.startswith(SCHEME):
        raise ConfigError(
            f"checkpoints = {own.checkpoints!r} is no place in S3", fix='give s3://BUCKET/PREFIX, or "none"'
        )
    return own.checkpoints or f"{place}/checkpoints/{own.checkpoint_name or name}"


def send(planned: Plan, env: Mapping[str, str]) -> str:
    """Upload the code, unless it is there, and create the job; its ARN. Raises CloudError."""
    upload_code(planned, env)
    job = planned.submission
    sagemaker = client("sagemaker", env, planned.region or None)
    if job.keep_alive:
        try:
            warm.tell(planned.request, sagemaker)
        except CloudError as error:
            log.warning("%s", error)  # the job itself does not depend on it
    with aws_errors(f"cannot create the training job {job.name}", allow="sagemaker:CreateTrainingJob"):
        return str(sagemaker.create_training_job(**planned.request)["TrainingJobArn"])


def upload_code(planned: Plan, env: Mapping[str, str]) -> str | None:
    """Upload the code, unless it is there; where it is, None where the image has it. Raises CloudError."""
    job, packed = planned.submission, planned.packed
    if packed is not None and job.code is not None:
        _upload(packed, job.code, job.kms_key, env, planned.region)
    return job.code


def _upload(packed: Packed, uri: str, kms_key: str | None, env: Mapping[str, str], region: str) -> None:
    import botocore.exceptions as boto

    bucket, key = split(uri)
    s3 = client("s3", env, region or None)
    with aws_errors(f"cannot look for the code in s3://{bucket}", allow="s3:GetObject, s3:ListBucket"):
        try:
            s3.head_object(Bucket=bucket, Key=key)
        except boto.ClientError as error:
            if error_code(error) not in ("404", "NoSuchKey", "NotFound"):
                raise
        else:
            log.info("the code is in S3 already: %s", uri)
            return
    encrypted = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
    with aws_errors(f"cannot upload the code to s3://{bucket}", allow="s3:PutObject"), packed.path.open("rb") as body:
        s3.put_object(Bucket=bucket, Key=key, Body=body, **encrypted)
    log.info("uploaded %d files, %.1f MB unpacked, as %s", packed.files, packed.size / 2**20, uri)
