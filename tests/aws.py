"""A server that speaks AWS's APIs, in the process of the test."""

from __future__ import annotations

import contextlib
import os
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def aws_server(address: str = "127.0.0.1") -> Iterator[str]:
    """Its endpoint, on a free port of `address`. It starts empty, as moto keeps what it holds in the process."""
    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
        yield endpoint
    finally:
        server.stop()


def nobody(patch: pytest.MonkeyPatch) -> None:
    """Leave commands of this process no keys, region or endpoint of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def called(patch: pytest.MonkeyPatch, endpoint: str, region: str = "") -> None:
    """Let commands of this process ask `endpoint`, with made-up keys, and once."""
    nobody(patch)
    for key, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": region, "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_MAX_ATTEMPTS": "1",
    }.items():  # fmt: skip
        if value:
            patch.setenv(key, value)


@contextlib.contextmanager
def bucket_and_sagemaker(patch: pytest.MonkeyPatch, region: str) -> Iterator[Mapping[str, Any]]:
    """Clients of a server that commands of this process ask: "s3", which has the bucket `bucket`, and "sagemaker"."""
    with aws_server() as endpoint:
        called(patch, endpoint, region)
        given = {"endpoint_url": endpoint, "region_name": region}
        s3 = boto3.client("s3", **given)
        s3.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": region})
        yield {"s3": s3, "sagemaker": boto3.client("sagemaker", **given)}
