"""An object read in pieces that come beside each other, each gone on with where it broke off. No torch here."""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing

from botocore.exceptions import IncompleteReadError

from moorage.checkpoint.durable import CHUNK
from moorage.checkpoint.s3.bucket import Bucket
from moorage.checkpoint.s3.failures import SERVICE
from moorage.checkpoint.s3.workers import Workers

_READ = 256 << 10
"""Bytes asked of a connection at a time: what of them has come when it breaks is lost."""


class Download:
    """One object, as it is when this is made. Raises S3Error; FileNotFoundError when there is none."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        found = bucket.call("head_object", key)
        self.size = int(found["ContentLength"])
        self._tag = str(found["ETag"])
        self._lock = threading.Lock()
        self._window, self._begins = memoryview(b""), 0

    def pieces(self) -> Iterator[memoryview]:
        """All of it in order, CHUNK bytes at a time; a piece is good until the next is asked for.

        `parallel` pieces are under way or with the caller, which is the memory it takes. Close it when it is not read
        to its end. Raises as `read_into`.
        """
        starts = iter(range(0, self.size, CHUNK))
        under_way: deque[tuple[Future[None], memoryview]] = deque()
        at_once = min(self._bucket.tuning.parallel, -(-self.size // CHUNK))
        with Workers(at_once) as workers:

            def ask(room: memoryview) -> None:
                start = next(starts, self.size)
                if start < self.size:
                    piece = room[: min(CHUNK, self.size - start)]
                    under_way.append((workers.submit(lambda: self._fetch(piece, start)), piece))

            for _ in range(at_once):
                ask(memoryview(bytearray(CHUNK)))
            try:
                while under_way:
                    future, piece = under_way.popleft()
                    future.result()
                    yield piece
                    ask(piece)
            finally:
                for future, _ in under_way:
                    future.cancel()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with what begins at `offset`. Used by any number of threads.

        Raises S3Error; FileNotFoundError, or OSError with ESTALE, when the object went or was replaced meanwhile, and
        with ENODATA when it ends before.
        """
        if offset + len(buffer) > self.size:
            raise OSError(errno.ENODATA, f"ends {offset + len(buffer) - self.size} bytes too early", self._key)
        if len(buffer) <= CHUNK // 2:
            self._from_window(buffer, offset)
        else:
            self._beside_each_other(buffer, offset)

    def _from_window(self, buffer: memoryview, offset: int) -> None:
        """Tensors lie beside each other and are read in their order: a request for each would take longer than all."""
        with self._lock:
            ends = self._begins + len(self._window)
            if not self._begins <= offset <= offset + len(buffer) <= ends:
                window = memoryview(bytearray(min(CHUNK, self.size - offset)))
                self._fetch(window, offset)
                self._window, self._begins = window, offset
            start = offset - self._begins
            buffer[:] = self._window[start : start + len(buffer)]

    def _beside_each_other(self, buffer: memoryview, offset: int) -> None:
        size = self._bucket.tuning.part_size
        parts = [(buffer[at : at + size], offset + at) for at in range(0, len(buffer), size)]
        with Workers(min(self._bucket.tuning.parallel, len(parts))) as workers:
            under_way = [workers.submit(lambda part=part: self._fetch(*part)) for part in parts]  # type: ignore[misc]
            try:
                for future in under_way:
                    future.result()
            finally:
                for future in under_way:
                    future.cancel()

    def _fetch(self, buffer: memoryview, offset: int) -> None:
        patience = self._bucket.patience("get_object", self._key)
        key, end, done = self._bucket.address.key(self._key), offset + len(buffer), 0
        while done < len(buffer):
            try:
                wanted = f"bytes={offset + done}-{end - 1}"
                answer = self._bucket.ask("get_object", Key=key, Range=wanted, IfMatch=self._tag)
                with closing(answer["Body"]) as body:
                    while count := body.readinto(buffer[done : done + _READ]):
                        done += count
                        patience.progressed()
                if done < len(buffer):
                    raise IncompleteReadError(actual_bytes=done, expected_bytes=len(buffer))
            except SERVICE as error:
                patience.failed(error)


def read_bytes(bucket: Bucket, key: str, *, limit: int) -> bytes:
    """An object of at most `limit` bytes. Raises as Download does, and OSError with EFBIG for a longer one."""
    download = Download(bucket, key)
    if download.size > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", key)
    found = bytearray(download.size)
    download.read_into(memoryview(found), 0)
    return bytes(found)
