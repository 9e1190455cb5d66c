"""How to reach S3: an address, and what boto3 is told. Nothing is imported that costs time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moorage.contract.values import unquoted

SCHEME = "s3://"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()=/-]*")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A prefix of a bucket. bucket: its name, or the alias of an access point. prefix: without slashes at its ends."""

    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, *names: str) -> str:
        return "/".join(name for name in (self.prefix, *names) if name)

    @classmethod
    def parse(cls, text: str) -> Address | None:
        """None when it is not s3://BUCKET/PREFIX. In PREFIX only what S3 calls safe, and `=`, which data lakes use.

        https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
        """
        if not text.startswith(SCHEME):
            return None
        bucket, prefix = split(text)
        prefix = prefix.strip("/")
        parts = prefix.split("/") if prefix else []
        if not _BUCKET.fullmatch(bucket) or not _PREFIX.fullmatch(prefix) or {"", ".", ".."} & set(parts):
            return None
        return cls(bucket=bucket, prefix=prefix)


def split(uri: str) -> tuple[str, str]:
    """The bucket and the key of s3://BUCKET/KEY, as they stand there."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    return bucket, key


def client_options(env: Mapping[str, str], sagemaker: Mapping[str, str]) -> dict[str, Any]:
    """Endpoint, region and keys for boto3.client, as far as they are given; the rest boto3 finds itself.

    sagemaker: the job's sagemaker_* hyperparameters, whose region wins.
    """
    region = unquoted(sagemaker.get("sagemaker_region", ""))
    given = {
        "endpoint_url": env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or env.get("S3_ENDPOINT_URL"),
        "region_name": region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION"),
        "aws_access_key_id": env.get("AWS_ACCESS_KEY_ID"),
        "aws_secret_access_key": env.get("AWS_SECRET_ACCESS_KEY"),
        "aws_session_token": env.get("AWS_SESSION_TOKEN"),
    }
    return {name: value for name, value in given.items() if value}
