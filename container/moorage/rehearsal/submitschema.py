"""[submit] of moorage.toml: what a real job needs beside what a rehearsal needs. Imports pydantic: load it late."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from moorage.rehearsal import spelling
from moorage.rehearsal.tables import Duration, Table, as_text, checked_by


class Submit(Table):
    """CreateTrainingJob, as far as the top of the file does not have it."""

    image: str | None = Field(
        None, min_length=1, description="The image's URI in ECR, as `moorage push` prints it; else `image`."
    )
    role: str | None = Field(None, min_length=1, description="The job's role: its ARN, or its name.")
    region: str | None = Field(None, min_length=1, description="Where it runs; else AWS_REGION, or the profile's.")
    job_name: str | None = Field(None, min_length=1, description="TrainingJobName; else `name` and the time.")
    bucket: str | None = Field(
        None, min_length=1, description="Of code, output and checkpoints; else sagemaker-REGION-ACCOUNT."
    )
    prefix: str = Field("moorage", description="In the bucket.")
    output: str | None = Field(None, min_length=1, description="S3OutputPath; else BUCKET/PREFIX/output.")
    uncompressed: bool = Field(False, description="The model as files, without model.tar.gz: for large ones.")
    checkpoints: str | None = Field(
        None, min_length=1, description='s3://BUCKET/PREFIX, or "none"; else a prefix under the job\'s name.'
    )
    checkpoint_name: str | None = Field(
        None, min_length=1, description="A prefix that stays: a new job of this name goes on where the last one ended."
    )
    spot: bool | None = Field(None, description="EnableManagedSpotTraining; else whether there is a max_wait.")
    groups: list[Annotated[str, checked_by(spelling.group)]] = Field(
        [], max_length=5, description='A heterogeneous cluster, in place of hosts: "gpu=ml.g5.xlarge*2".'
    )
    volume_gb: int | None = Field(
        None, ge=1, description="VolumeSizeInGB; else 30, and none where instances have storage of their own."
    )
    keep_alive: Duration | None = Field(None, gt=0, description="Keep the instances warm for the next job: 10m.")
    kms_key: str | None = Field(None, min_length=1, description="Encrypts output and code in S3.")
    volume_kms_key: str | None = Field(None, min_length=1, description="Encrypts the instances' volumes.")
    subnets: list[str] = Field([], description="VpcConfig.")
    security_groups: list[str] = Field([], description="VpcConfig.")
    isolation: bool = Field(
        False, description="EnableNetworkIsolation: nothing reaches the container, it reaches nothing."
    )
    encrypt_traffic: bool = Field(False, description="EnableInterContainerTrafficEncryption.")
    tags: dict[str, Annotated[str, BeforeValidator(as_text)]] = Field({}, description="Of the job.")
    allow: list[str] = Field([], description="Codes of findings that do not stop it.")
