"""A prefix of a bucket: single requests, each tried again while it is worth it. No torch here."""

from __future__ import annotations

import base64
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from moorage.checkpoint.s3.failures import SERVICE, Patience, S3Error
from moorage.checkpoint.storage import Seen
from moorage.contract.s3 import Address

T = TypeVar("T")

_CONNECTIONS = 32
"""Kept open: when a checkpoint is loaded, each thread that reads has `parallel` requests under way."""

_MOST_DELETED = 1000
"""Keys in one request, as S3 allows."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How S3 is spoken to. The pieces in flight, `parallel` of `part_size` bytes at least, are the memory it takes.

    timeout: seconds of silence that end a request. patience: seconds for which it is tried again. pace: seconds, at
    most, before the second attempt.
    """

    part_size: int = 16 << 20
    parallel: int = 4
    timeout: float = 20.0
    patience: float = 120.0
    pace: float = 0.5


class Bucket:
    """The objects under one address; keys are relative to it. options: for boto3.client.

    owner: the account that the bucket must belong to, empty for any. Used by any number of threads.
    Every method raises S3Error when S3 refuses or stays silent, and FileNotFoundError where there is no such object.
    """

    def __init__(
        self,
        address: Address,
        options: Mapping[str, Any],
        *,
        owner: str = "",
        tuning: Tuning | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        self.address, self.tuning = address, tuning or Tuning()
        self._owner = owner
        self._log = log or logging.getLogger("moorage")
        self._client = _client(options, self.tuning)

    def patience(self, action: str, key: str) -> Patience:
        """For the attempts at one thing."""
        return Patience(
            action, self.address, self.address.key(key), seconds=self.tuning.patience, pace=self.tuning.pace,
            owner=self._owner, log=self._log,
        )  # fmt: skip

    def ask(self, action: str, **arguments: Any) -> Any:
        """One request, once: raises what boto3 does."""
        owner = {"ExpectedBucketOwner": self._owner} if self._owner else {}
        return getattr(self._client, action)(Bucket=self.address.bucket, **arguments, **owner)

    def call(self, action: str, key: str, **arguments: Any) -> Any:
        """One request that names an object, as often as needed."""
        return self._again(action, key, lambda: self.ask(action, Key=self.address.key(key), **arguments))

    def put(self, key: str, data: bytes | bytearray) -> None:
        """Write an object whole; S3 compares what comes with its CRC-32."""
        self.call("put_object", key, Body=data, ChecksumCRC32=crc32(data))

    def copy(self, key: str, to: str) -> None:
        """Within S3, an object of 5 GB at most."""
        source = {"Bucket": self.address.bucket, "Key": self.address.key(key)}
        owner = {"ExpectedSourceBucketOwner": self._owner} if self._owner else {}
        self.call("copy_object", to, CopySource=source, **owner)

    def exists(self, key: str) -> bool:
        try:
            self.call("head_object", key)
        except FileNotFoundError:
            return False
        return True

    def listing(self, folder: str = "") -> dict[str, Seen]:
        """What lies under `folder`, at any depth, by its key within it."""
        start = self._start(folder)
        return {
            item["Key"].removeprefix(start): Seen(size=int(item["Size"]), changed=item["LastModified"].timestamp())
            for page in self._pages("list_objects_v2", folder, "ContinuationToken", "NextContinuationToken")
            for item in page.get("Contents", ())
        }

    def folders(self) -> list[str]:
        """The names right under the address that have objects under them."""
        start = self._start("")
        pages = self._pages("list_objects_v2", "", "ContinuationToken", "NextContinuationToken", Delimiter="/")
        return sorted(
            item["Prefix"].removeprefix(start).rstrip("/") for page in pages for item in page.get("CommonPrefixes", ())
        )

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there do not matter."""
        for first in range(0, len(keys), _MOST_DELETED):
            self._again("delete_objects", keys[first], self._deletion(keys[first : first + _MOST_DELETED]))

    def _deletion(self, keys: Sequence[str]) -> Callable[[], None]:
        def ask() -> None:
            objects = [{"Key": self.address.key(key)} for key in keys]
            found = self.ask("delete_objects", Delete={"Objects": objects, "Quiet": True})
            # Each has an answer of its own, in a response that is a success all the same.
            for error in found.get("Errors", ()):
                raise ClientError({"Error": error}, "DeleteObjects")

        return ask

    def unfinished(self) -> list[tuple[str, str]]:
        """(key, upload id) of each multipart upload under the address that was neither completed nor aborted."""
        start = self._start("")
        pages = self._pages("list_multipart_uploads", "", "KeyMarker", "NextKeyMarker")
        found = [(item["Key"], item["UploadId"]) for page in pages for item in page.get("Uploads", ())]
        return [(key.removeprefix(start), upload) for key, upload in found if key.startswith(start)]

    def _start(self, folder: str) -> str:
        key = self.address.key(folder)
        return f"{key}/" if key else ""

    def _pages(self, action: str, folder: str, given: str, next_one: str, **arguments: Any) -> Iterator[Any]:
        more = {"Prefix": self._start(folder), **arguments}
        while True:
            page = self._again(action, folder, lambda: self.ask(action, **more))
            yield page
            if not page.get("IsTruncated"):
                return
            more[given] = page[next_one]
            if next_one == "NextKeyMarker":
                more["UploadIdMarker"] = page["NextUploadIdMarker"]

    def _again(self, action: str, key: str, attempt: Callable[[], T]) -> T:
        patience = self.patience(action, key)
        while True:
            try:
                return attempt()
            except SERVICE as error:
                patience.failed(error)


def crc32(data: bytes | bytearray) -> str:
    """As S3 writes it."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def _client(options: Mapping[str, Any], tuning: Tuning) -> Any:
    # Imported here: whoever only lists a folder on a disk need not wait for it.
    import boto3
    from botocore.config import Config

    config = Config(
        # Patience tries again, for as long as is worth it and with its own dice: boto3 would draw from the program's.
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=tuning.timeout,
        read_timeout=tuning.timeout,
        tcp_keepalive=True,
        max_pool_connections=_CONNECTIONS,
        # What is written has a CRC-32 of ours; what is read is compared with the manifest.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # Stand-ins for S3 rarely serve a host name per bucket.
        s3={"addressing_style": "path"} if "endpoint_url" in options else {},
    )
    # Not the default session: this one is not the program's.
    try:
        return boto3.session.Session().client("s3", config=config, **options)
    except (BotoCoreError, ValueError) as error:
        raise S3Error("S3 cannot be reached", why=f"{type(error).__name__}: {error}", fix="see AWS_*") from None
