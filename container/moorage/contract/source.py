"""Where submitted code comes from: a folder, a tar.gz, or a tar.gz in S3."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from moorage.contract.archive import MAX_BYTES, extract
from moorage.contract.config import JobConfig
from moorage.contract.s3 import client_options
from moorage.contract.secrets import redact
from moorage.contract.values import unquoted
from moorage.errors import ProgramError

log = logging.getLogger("moorage")

_ISOLATED = "under network isolation give the code as the channel 'code', or bake it into the image at /opt/program"


def setting(config: JobConfig, env: Mapping[str, str], name: str) -> tuple[str, str]:
    """The value of a script mode setting and who set it; ("", "") when nobody did.

    The hyperparameter (the job's) wins over the environment variable, which an image may carry. A value may be quoted
    as JSON.
    """
    for text, who in (
        (config.sagemaker.get(name), f"hyperparameter {name}"),
        (env.get(name.upper()), f"environment variable {name.upper()}"),
    ):
        if value := unquoted(text or ""):
            return value, who
    return "", ""


def fetch(location: str, who: str, config: JobConfig, env: Mapping[str, str], scratch: Path | None = None) -> Path:
    """The folder with the code at `location`. An archive goes to a fresh folder in `scratch`. Raises ProgramError."""
    if location.startswith("s3://"):
        return _from_s3(location, who, client_options(env, config.sagemaker), scratch)
    if "://" in location and not location.startswith("file://"):
        raise ProgramError(
            f"{who}: cannot fetch code from {redact(location)!r}",
            fix="give a folder, a tar.gz, or s3://bucket/key.tar.gz",
        )
    path = Path(unquote(urlsplit(location).path) if location.startswith("file://") else location)
    if path.is_dir():
        return path
    if path.is_file():
        return _unpacked(path, scratch)
    raise ProgramError(
        f"{who}: there is no folder or archive {redact(str(path))!r}",
        fix="give a folder, a tar.gz, or s3://bucket/key.tar.gz",
    )


def _unpacked(archive: Path, scratch: Path | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="moorage-code-", dir=scratch))
    with contextlib.ExitStack() as on_error:
        on_error.callback(folder.rmdir)
        extract(archive, folder)
        on_error.pop_all()
    return folder


def _from_s3(location: str, who: str, options: Mapping[str, Any], scratch: Path | None) -> Path:
    # Imported here: most jobs have their code on disk, and boto3 costs a seventh of a second.
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = location.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise ProgramError(f"{who}: {location!r} names no object", fix="give s3://bucket/key.tar.gz")
    log.info("fetching the program from s3://%s/%s", bucket, key)
    config = Config(
        retries={"mode": "standard"},
        connect_timeout=10,
        # Stand-ins for S3 rarely serve a host name per bucket.
        s3={"addressing_style": "path"} if "endpoint_url" in options else {},
    )
    with tempfile.TemporaryDirectory(prefix="moorage-fetch-") as folder:
        archive = Path(folder, "code.tar.gz")
        try:
            client = boto3.client("s3", config=config, **options)
            size = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
            if size <= MAX_BYTES:
                client.download_file(bucket, key, str(archive))
        except ClientError as error:
            raise _refused(bucket, key, who, error.response) from None
        except BotoCoreError as error:
            raise _unreachable(bucket, key, who, error) from None
        if size > MAX_BYTES:
            raise ProgramError(f"{who}: s3://{bucket}/{key} has {size} bytes", why=f"code may have {MAX_BYTES}")
        return _unpacked(archive, scratch)


def _refused(bucket: str, key: str, who: str, response: Mapping[str, Any]) -> ProgramError:
    """An answer of S3 other than the object."""
    what = f"{who}: cannot fetch the program s3://{bucket}/{key} (bucket {bucket!r}, key {key!r})"
    code = str(response.get("Error", {}).get("Code", ""))
    if code in ("403", "AccessDenied", "Forbidden"):
        return ProgramError(
            what,
            why="access denied (S3 also says so of a missing object where listing is not allowed)",
            fix=f"allow the job's role s3:GetObject on arn:aws:s3:::{bucket}/{key}, and kms:Decrypt if it is encrypted",
        )
    if code in ("404", "NoSuchKey", "NoSuchBucket"):
        return ProgramError(
            what, why="no such bucket or object", fix="upload the archive again, or correct the address"
        )
    message = redact(str(response.get("Error", {}).get("Message", "")))
    return ProgramError(what, why=f"S3 answered {code} {message}".strip(), fix="check the bucket's region and policy")


def _unreachable(bucket: str, key: str, who: str, error: Exception) -> ProgramError:
    return ProgramError(
        f"{who}: cannot fetch the program s3://{bucket}/{key} (bucket {bucket!r}, key {key!r})",
        why=f"{type(error).__name__}: {redact(str(error))}",
        fix=f"give the job credentials and a way to S3; {_ISOLATED}",
    )
