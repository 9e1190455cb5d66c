"""What S3 refuses and what only failed for now; and how long the latter is tried again. No torch here."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from moorage.contract.s3 import Address
from moorage.contract.secrets import redact
from moorage.errors import CheckpointError

SERVICE = (ClientError, BotoCoreError, ResponseParserError, HTTPError, OSError)
"""All that a request can end with, its answer's body included."""

_FOR_NOW = (HTTPClientError, ConnectionError, IncompleteReadError, CredentialRetrievalError, ResponseParserError,
            HTTPError, OSError)  # fmt: skip
_CODES_FOR_NOW = frozenset({
    "BadDigest", "IncompleteBody", "InternalError", "OperationAborted", "RequestLimitExceeded", "RequestTimeout",
    "RequestTimeoutException", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
    "XAmzContentChecksumMismatch",
})  # fmt: skip
_CODES_OF_CREDENTIALS = frozenset({
    "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired",
})  # fmt: skip
_CREDENTIALS = "give the job a role (the platform does), or keys that are valid as AWS_ACCESS_KEY_ID and so on"

_PERMISSIONS = {
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "copy_object": "s3:PutObject",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "list_objects_v2": "s3:ListBucket",
    "delete_objects": "s3:DeleteObject",
}
_OF_THE_BUCKET = frozenset({"s3:ListBucket", "s3:ListBucketMultipartUploads"})

_LONGEST_PAUSE = 20.0

# Not the module's own numbers: the program seeds those, and resumes them bit for bit.
_dice = random.SystemRandom()


class S3Error(CheckpointError):
    """S3 does not do what was asked, and asking again would not help."""


class Patience:
    """Of one thing to do: which failures are worth another attempt, and when.

    The pauses are drawn evenly from 0 to a bound that doubles ("full jitter",
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that ranks which were slowed down
    together do not come back together. seconds: from the first failure, or the last progress, until it is given up.
    pace: the first bound in seconds.
    """

    def __init__(self, action: str, address: Address, key: str, *, seconds: float, pace: float, owner: str,
                 log: logging.Logger) -> None:  # fmt: skip
        self._action, self._address, self._key, self._owner = action, address, key, owner
        self._seconds, self._pace, self._log = seconds, pace, log
        self._failures, self._since = 0, 0.0

    def progressed(self) -> None:
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """Wait for another attempt, or raise S3Error.

        Where there is no such object, FileNotFoundError; where another has taken its name, OSError with ESTALE.
        """
        now = time.monotonic()
        self._since = self._since if self._failures else now
        self._failures += 1
        self._refuse(error)
        pause = _dice.uniform(0, min(_LONGEST_PAUSE, self._pace * 2 ** (self._failures - 1)))
        reason = describe(error)
        if now + pause > self._since + self._seconds:
            raise S3Error(
                f"{self._action} of {self._name} failed {self._failures} times in {now - self._since:.0f} s",
                why=f"at last: {reason}",
                fix="see whether the job can reach S3 (VPC endpoint, network isolation) and asks too much of it",
            ) from None
        level = logging.WARNING if self._failures >= 3 else logging.INFO
        self._log.log(level, "%s of %s: %s; again in %.1f s", self._action, self._name, reason, pause)
        time.sleep(pause)

    @property
    def _name(self) -> str:
        return f"s3://{self._address.bucket}/{self._key}"

    def _refuse(self, error: Exception) -> None:
        if isinstance(error, NoCredentialsError):
            raise S3Error(
                f"{self._action} of {self._name} failed",
                why="there are no credentials",
                fix=_CREDENTIALS,
            ) from None
        if isinstance(error, ClientError):
            if not _for_now(error.response):
                self._raise_refusal(error.response)
        elif not isinstance(error, _FOR_NOW):
            raise S3Error(f"{self._action} of {self._name} failed", why=describe(error)) from None

    def _raise_refusal(self, response: Mapping[str, Any]) -> None:
        code = _code(response)
        if code in ("404", "NoSuchKey"):
            raise FileNotFoundError(errno.ENOENT, "no such object", self._name) from None
        if code in ("412", "PreconditionFailed"):
            raise OSError(errno.ESTALE, "replaced while it was read", self._name) from None
        what = f"{self._action} of {self._name} was refused"
        if code in ("403", "AccessDenied", "Forbidden", "AllAccessDisabled"):
            raise S3Error(what, why="access denied", fix=self._how_to_allow()) from None
        if code == "NoSuchBucket":
            raise S3Error(
                what, why=f"there is no bucket {self._address.bucket}", fix="checkpoint_s3 names it"
            ) from None
        if code in _CODES_OF_CREDENTIALS:
            raise S3Error(what, why=f"S3 answered {code}", fix=_CREDENTIALS) from None
        message = redact(str(response.get("Error", {}).get("Message", "")))
        raise S3Error(
            what, why=f"S3 answered {code} {message}".strip(), fix="check the bucket's region and policy"
        ) from None

    def _how_to_allow(self) -> str:
        permission = _PERMISSIONS[self._action]
        bucket = f"arn:aws:s3:::{self._address.bucket}"
        resource = bucket if permission in _OF_THE_BUCKET else f"{bucket}/{self._address.key('*')}"
        owner = f"; or the bucket is not that of account {self._owner} (checkpoint_s3_owner)" if self._owner else ""
        return (
            f"allow the job's role {permission} on {resource}, and kms:GenerateDataKey and kms:Decrypt where a key "
            f"encrypts the bucket{owner}"
        )


def is_gone(error: Exception) -> bool:
    """Whether S3 says that there is no such multipart upload."""
    return isinstance(error, ClientError) and _code(error.response) == "NoSuchUpload"


def describe(error: Exception) -> str:
    if isinstance(error, ClientError):
        return f"S3 answered {_code(error.response)}"
    return f"{type(error).__name__}: {redact(str(error))}"


def _code(response: Mapping[str, Any]) -> str:
    return str(response.get("Error", {}).get("Code", ""))


def _for_now(response: Mapping[str, Any]) -> bool:
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return _code(response) in _CODES_FOR_NOW or status in (408, 429) or status >= 500
