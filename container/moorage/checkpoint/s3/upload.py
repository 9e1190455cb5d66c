"""One object on its way to S3: in parts, hashed as they go, and there only when it is whole. No torch here."""

from __future__ import annotations

import logging
import queue
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import xxhash

from moorage.checkpoint.durable import FileFacts
from moorage.checkpoint.s3.bucket import Bucket, crc32
from moorage.checkpoint.s3.failures import SERVICE, S3Error, is_gone
from moorage.checkpoint.s3.workers import Workers

log = logging.getLogger("moorage")

_GROWS_AFTER = 2000
"""Parts after which they double: S3 takes 10,000 of them, and a checkpoint says its size only at its end."""

_TOKEN = "moorage-upload"

_LOOKS = 4
"""For an object whose upload is gone, each after twice the pause."""


class Upload:
    """A writer as durable.Writer is. Its memory is the parts in flight and the one being filled. Raises S3Error.

    position: bytes written so far.
    """

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._hash = xxhash.xxh3_128()
        self._parts: _Parts | None = None
        self._part, self._filled = bytearray(), 0
        self._facts: FileFacts | None = None
        self.position = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        left = memoryview(data).cast("B")
        self._facts = None
        while left:
            count = self._fill(left)
            self._hash.update(left[:count])
            self.position += count
            left = left[count:]
        return len(data)

    def _fill(self, view: memoryview) -> int:
        """How many bytes of it have found room."""
        if self._filled == len(self._part):
            self._next_part()
        count = min(len(view), len(self._part) - self._filled)
        with memoryview(self._part) as room:
            room[self._filled : self._filled + count] = view[:count]
        self._filled += count
        return count

    def _next_part(self) -> None:
        if not self._part:
            self._part, self._filled = bytearray(self._bucket.tuning.part_size), 0
            return
        if self._parts is None:
            self._parts = _Parts(self._bucket, self._key)
        self._part, self._filled = self._parts.exchange(self._part), 0

    def finish(self) -> FileFacts:
        """Wait until S3 has all but the last request."""
        if self._facts is None:
            if self._parts is not None and self._filled:
                self._parts.exchange(self._rest())
                self._part, self._filled = bytearray(), 0
            if self._parts is not None:
                self._parts.wait()
            self._facts = FileFacts(size=self.position, xxh3_128=self._hash.hexdigest())
        return self._facts

    def publish(self) -> None:
        """Let the object be there."""
        self.finish()
        if self._parts is None:
            self._bucket.put(self._key, self._rest())
        else:
            self._parts.complete()

    def _rest(self) -> bytearray:
        del self._part[self._filled :]
        return self._part

    def abandon(self) -> None:
        """Leave nothing of it in S3."""
        if self._parts is not None:
            self._parts.abort()


@contextmanager
def uploading(bucket: Bucket, key: str) -> Iterator[Upload]:
    """Write an object whole or not at all; an existing one is replaced at once. Raises S3Error."""
    upload = Upload(bucket, key)
    try:
        yield upload
        upload.publish()
    except BaseException:
        upload.abandon()
        raise


class _Parts:
    """A multipart upload. Parts are sent beside each other, and S3 compares each with its CRC-32."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._token = secrets.token_hex(16)
        self._asked = 0
        self._id = self._create()
        self._sent: list[Future[dict[str, Any]]] = []
        self._error: S3Error | None = None
        self._workers = Workers(bucket.tuning.parallel)
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(bucket.tuning.parallel):
            self._free.put(bytearray())

    def _create(self) -> str:
        patience = self._bucket.patience("create_multipart_upload", self._key)
        while True:
            self._asked += 1
            try:
                made = self._ask("create_multipart_upload", Metadata={_TOKEN: self._token}, ChecksumAlgorithm="CRC32")
                return str(made["UploadId"])
            except SERVICE as error:
                patience.failed(error)

    def _ask(self, action: str, **arguments: Any) -> Any:
        return self._bucket.ask(action, Key=self._bucket.address.key(self._key), **arguments)

    def exchange(self, part: bytearray) -> bytearray:
        """Send a part; memory for the next one, once there is some. Raises the S3Error of a part before."""
        number = len(self._sent) + 1
        self._sent.append(self._workers.submit(lambda: self._send(number, part)))
        free = self._free.get()
        if self._error is not None:
            raise self._error
        size = self._bucket.tuning.part_size << number // _GROWS_AFTER
        return free if len(free) == size else bytearray(size)

    def _send(self, number: int, part: bytearray) -> dict[str, Any]:
        checksum = crc32(part)
        try:
            sent = self._bucket.call(
                "upload_part", self._key, UploadId=self._id, PartNumber=number, Body=part, ChecksumCRC32=checksum
            )
        except S3Error as error:
            self._error = error
            raise
        finally:
            self._free.put(part)
        return {"PartNumber": number, "ETag": sent["ETag"], "ChecksumCRC32": checksum}

    def wait(self) -> None:
        for future in self._sent:
            future.result()

    def complete(self) -> None:
        parts = {"Parts": [future.result() for future in self._sent]}
        patience = self._bucket.patience("complete_multipart_upload", self._key)
        failed = False
        while True:
            try:
                self._ask("complete_multipart_upload", UploadId=self._id, MultipartUpload=parts)
                break
            except SERVICE as error:
                # The answer to an attempt before this one may have been lost.
                if failed and is_gone(error) and self._is_there_soon():
                    break
                failed = True
                patience.failed(error)
        self._workers.close()
        self._sweep(self._id)

    def _is_there_soon(self) -> bool:
        """An attempt whose answer was lost may still be at work: the upload is gone before the object is there."""
        for look in range(_LOOKS):
            if self._is_there():
                return True
            time.sleep(self._bucket.tuning.pace * 2**look)
        return False

    def _is_there(self) -> bool:
        try:
            found = self._bucket.call("head_object", self._key)
        except FileNotFoundError:
            return False
        return bool(found["Metadata"].get(_TOKEN) == self._token)

    def abort(self) -> None:
        for future in self._sent:
            future.cancel()
        # A part that arrives after the abort would stay, and be paid for.
        self._workers.close()
        abort(self._bucket, self._key, self._id)
        self._sweep(self._id)

    def _sweep(self, known: str) -> None:
        """Where an answer that told an id was lost, there is an upload that nobody goes on with."""
        if self._asked > 1:
            sweep(self._bucket, lambda key, upload: key == self._key and upload != known)


def sweep(bucket: Bucket, left_over: Callable[[str, str], bool]) -> None:
    """Abort the multipart uploads under the address that are left over, told by their key and id; log if it fails."""
    try:
        for key, upload in bucket.unfinished():
            if left_over(key, upload):
                abort(bucket, key, upload)
    except S3Error as error:
        log.warning("parts of uploads that did not end may stay in S3: %s", error)


def abort(bucket: Bucket, key: str, upload: str) -> None:
    """End a multipart upload, so that its parts are not paid for. What cannot be aborted is logged."""
    patience = bucket.patience("abort_multipart_upload", key)
    while True:
        try:
            bucket.ask("abort_multipart_upload", Key=bucket.address.key(key), UploadId=upload)
            return
        except SERVICE as error:
            if is_gone(error):
                return
            try:
                patience.failed(error)
            except S3Error as refused:
                log.warning("the parts of an upload stay in S3 until the next start: %s", refused)
                return
