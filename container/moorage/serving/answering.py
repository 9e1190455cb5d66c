"""The turns of a model process: one batch, or one chunk of an answer, at a time."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from moorage.serving import wire
from moorage.serving.arena import Bodies
from moorage.serving.exchange import Answer, Request, Servable
from moorage.serving.heads import sendable
from moorage.serving.page import Page
from moorage.serving.wire import BROKEN, CHUNK_SIZE, CREDIT_BYTES, LAST, NOWHERE, RequestFrame

_READ = 256 * 1024
_HOLD = 500_000
"""Nanoseconds that an answer may wait for others to travel with it."""
_LOOK = 1_000_000
"""Nanoseconds after which the front may have cancelled something."""

logger = logging.getLogger("moorage")


@dataclass(eq=False, kw_only=True, slots=True)
class _Stream:
    """An answer of which more is to come. credit: bytes that may still be sent before the client takes some.
    source: what makes the chunks, and is closed when the client leaves.
    """

    id: str
    number: int
    chunks: Iterator[bytes | memoryview]
    source: object = None
    credit: int = CREDIT_BYTES


class Answering:
    """It reads and writes `channel` in one thread; while the model works, frames wait in the socket."""

    def __init__(self, channel: socket.socket, servable: Servable, *, bodies: Bodies, page: Page) -> None:
        self._channel, self._servable, self._bodies, self._page = channel, servable, bodies, page
        self._frames = wire.Frames()
        self._batches: deque[list[RequestFrame]] = deque()
        self._gathering: list[RequestFrame] = []
        self._cancelled: set[int] = set()
        self._streams: dict[int, _Stream] = {}
        self._out: list[bytes | memoryview] = []
        self._out_since = self._looked = 0

    def run_until_the_front_is_gone(self) -> None:
        with contextlib.suppress(ConnectionError):
            while self._turn():
                pass

    def _turn(self) -> bool:
        """Whether there is a front."""
        if self._batches or self._streams:
            # What was cancelled meanwhile need not be done.
            if time.monotonic_ns() - self._looked > _LOOK and not self._receive(wait=False):
                return False
            stream = next((stream for stream in self._streams.values() if stream.credit > 0), None)
            if stream is not None:
                # One answer after the other: a model that makes a stream of tokens is not made for two at once.
                self._step(stream)
                return True
            if self._batches:
                self._answer(self._batches.popleft())
                return True
        self._flush()
        return self._receive(wait=True)

    # What comes

    def _receive(self, *, wait: bool) -> bool:
        try:
            data = self._channel.recv(_READ, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._looked = time.monotonic_ns()
            return True
        self._looked = time.monotonic_ns()
        for frame in self._frames.feed(data):
            kind = wire.kind_of(frame)
            if kind == wire.REQUEST:
                request = wire.unpack_request(frame)
                self._gathering.append(request)
                if request.is_last:
                    self._batches.append(self._gathering)
                    self._gathering = []
            elif kind == wire.CREDIT:
                number, size = wire.unpack_credit(frame)
                if number in self._streams:
                    self._streams[number].credit += size
            elif kind == wire.CANCEL:
                self._cancel(wire.number_of(frame))
        return bool(data)

    def _cancel(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._close(stream)
            self._send(wire.pack_chunk(number, flags=LAST | BROKEN, piece=0))
        elif any(request.number == number for batch in self._batches for request in batch):
            self._cancelled.add(number)

    # What the model does

    def _answer(self, batch: list[RequestFrame]) -> None:
        now = time.monotonic()
        live = [frame for frame in batch if frame.number not in self._cancelled and frame.deadline > now]
        if len(live) < len(batch):
            for number in {frame.number for frame in batch} - {frame.number for frame in live}:
                self._cancelled.discard(number)
                self._send(wire.pack_dropped(number))
            if not live:
                return
        self._page.begin(batch[-1].number)
        started = time.perf_counter_ns()
        answers = self._servable.answer([self._request(frame) for frame in live])
        microseconds = (time.perf_counter_ns() - started) // 1000
        self._page.end()
        assert len(answers) == len(live), "one answer for each request"
        for frame, answer in zip(live, answers, strict=True):
            self._begin(frame, answer, batch_size=len(live), microseconds=min(microseconds, 2**32 - 1))

    def _request(self, frame: RequestFrame) -> Request:
        texts = frame.texts
        return Request(
            id=texts[0],
            body=frame.body if frame.offset == NOWHERE else self._bodies.body(frame.offset, frame.length),
            content_type=texts[1],
            accept=texts[2],
            custom_attributes=texts[3],
            headers=dict(zip(texts[4::2], texts[5::2], strict=True)),
        )

    def _begin(self, frame: RequestFrame, answer: Answer, *, batch_size: int, microseconds: int) -> None:
        """Send the whole answer, or what there is of it."""
        body: bytes | memoryview
        stream: _Stream | None = None
        if isinstance(answer.body, (bytes, memoryview)):
            body, length = answer.body, memoryview(answer.body).nbytes
            if length > CHUNK_SIZE:
                body, *rest = _pieces(answer.body)
                stream = _Stream(id=frame.texts[0], number=frame.number, chunks=iter(rest))
        else:
            stream = _Stream(id=frame.texts[0], number=frame.number, chunks=answer.body, source=answer.body)
            # Until there is a first chunk, the client can still be told that there is none.
            try:
                body, *rest = _pieces(self._next(stream) or b"") or [memoryview(b"")]
                stream.chunks, length = itertools.chain(rest, answer.body), NOWHERE
            except Exception:
                logger.exception("request %s: its answer failed before it began", stream.id)
                body = _failed(stream.id)
                answer, stream, length = Answer(body=body, status=500), None, len(body)
        packed = wire.pack_answer(
            frame.number,
            flags=0 if stream else LAST,
            status=answer.status,
            batch_size=batch_size,
            microseconds=microseconds,
            head=sendable(answer.content_type, answer.custom_attributes, tuple(answer.headers.items())),
            length=length,
            piece=len(body),
        )
        self._send(packed, body)
        if stream:
            stream.credit -= len(body)
            self._streams[stream.number] = stream
            self._flush()

    def _next(self, stream: _Stream) -> memoryview | None:
        self._page.begin()
        try:
            chunk = next(stream.chunks, None)
        finally:
            self._page.end()
        return None if chunk is None else memoryview(chunk).cast("B")

    def _step(self, stream: _Stream) -> None:
        """One chunk, which the client gets at once."""
        try:
            chunk = self._next(stream)
        except Exception:
            logger.exception("request %s: its answer broke off", stream.id)
            self._end(stream, flags=LAST | BROKEN)
            return
        if chunk is None:
            self._end(stream, flags=LAST)
            return
        stream.credit -= len(chunk)
        for piece in _pieces(chunk):
            self._send(wire.pack_chunk(stream.number, flags=0, piece=len(piece)), piece)
        self._flush()

    def _end(self, stream: _Stream, *, flags: int) -> None:
        del self._streams[stream.number]
        self._send(wire.pack_chunk(stream.number, flags=flags, piece=0))
        self._flush()

    def _close(self, stream: _Stream) -> None:
        close = getattr(stream.source, "close", None)
        if close is not None:
            try:
                close()
            except Exception:
                logger.exception("request %s: the end of its answer failed, after its client had left", stream.id)

    # What goes

    def _send(self, head: bytes, body: bytes | memoryview = b"") -> None:
        now = time.monotonic_ns()
        if not self._out:
            self._out_since = now
        self._out.append(head)
        if body:
            self._out.append(body)
        if len(body) >= CHUNK_SIZE or now - self._out_since > _HOLD:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._channel.sendall(data)


def _pieces(body: bytes | memoryview) -> list[memoryview]:
    view = memoryview(body).cast("B")
    return [view[at : at + CHUNK_SIZE] for at in range(0, len(view), CHUNK_SIZE)]


def _failed(request_id: str) -> bytes:
    """What a client is told who could not have done otherwise."""
    return json.dumps({"error": "the model failed; the log has more", "request_id": request_id}).encode()
