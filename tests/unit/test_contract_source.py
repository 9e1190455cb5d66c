"""Code from S3, against a server that speaks S3."""

from __future__ import annotations

import io
import json
import socket
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from aws import aws_server
from jobs import Job
from moorage.contract.program import prepare
from moorage.errors import ProgramError

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "hunter22"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(endpoint: str) -> Any:
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    client.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    yield client
    client.close()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    job = Job(tmp_path / "ml")
    job.hyperparameters(
        sagemaker_program='"train.py"',
        sagemaker_submit_directory='"s3://bucket/jobs/code.tar.gz"',
        sagemaker_region='"eu-west-1"',
    )
    job.env |= KEYS
    return job


def archive(text: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        info = tarfile.TarInfo("train.py")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    return file.getvalue()


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL"])
def test_the_program_comes_from_s3(job: Job, s3: Any, endpoint: str, variable: str) -> None:
    s3.put_object(Bucket="bucket", Key="jobs/code.tar.gz", Body=archive("print(1)"))
    job.env[variable] = endpoint
    program = prepare(job.config(), job.env, scratch=job.base.parent)
    assert (program.code / "train.py").read_text() == "print(1)"
    assert [path.name for path in program.code.iterdir()] == ["train.py"]
    assert not program.code.is_relative_to(job.base)


def fails(job: Job) -> str:
    with pytest.raises(ProgramError) as caught:
        prepare(job.config(), job.env, scratch=job.base.parent)
    message = str(caught.value)
    assert "hunter22" not in message
    assert "hyperparameter sagemaker_submit_directory" in message
    assert "bucket 'bucket', key 'jobs/code.tar.gz'" in message
    return message


def test_no_such_object_or_bucket(job: Job, s3: Any, endpoint: str) -> None:
    job.env["AWS_ENDPOINT_URL_S3"] = endpoint
    assert "no such bucket or object" in fails(job)
    s3.delete_bucket(Bucket="bucket")
    assert "no such bucket or object" in fails(job)


def test_access_denied_names_what_to_allow(job: Job, s3: Any, endpoint: str) -> None:
    job.env["AWS_ENDPOINT_URL_S3"] = endpoint

    def allow(requests: str) -> None:
        url = f"{endpoint}/moto-api/reset-auth"
        request = urllib.request.Request(url, data=requests.encode(), headers={"Content-Type": "text/plain"})
        urllib.request.urlopen(request).close()

    allow("0")
    try:
        message = fails(job)
    finally:
        allow("inf")
    assert "access denied" in message
    assert "s3:GetObject on arn:aws:s3:::bucket/jobs/code.tar.gz" in message


def test_no_way_to_s3(job: Job) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        job.env["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{held.getsockname()[1]}"
        message = fails(job)
    assert "EndpointConnectionError" in message
    assert "network isolation" in message
    assert "channel 'code'" in message
    assert "/opt/program" in message


def test_no_credentials(job: Job, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        del job.env[name]
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    job.env["AWS_ENDPOINT_URL_S3"] = endpoint
    assert "NoCredentialsError" in fails(job)


def test_an_object_that_is_no_archive(job: Job, s3: Any, endpoint: str) -> None:
    s3.put_object(Bucket="bucket", Key="jobs/code.tar.gz", Body=json.dumps({}).encode())
    job.env["AWS_ENDPOINT_URL_S3"] = endpoint
    with pytest.raises(ProgramError, match="must be a whole"):
        prepare(job.config(), job.env, scratch=job.base.parent)


def test_an_object_too_large_is_not_fetched(job: Job, s3: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.contract.source.MAX_BYTES", 10)
    s3.put_object(Bucket="bucket", Key="jobs/code.tar.gz", Body=b"x" * 11)
    job.env["AWS_ENDPOINT_URL_S3"] = endpoint
    with pytest.raises(ProgramError, match="has 11 bytes"):
        prepare(job.config(), job.env, scratch=job.base.parent)
