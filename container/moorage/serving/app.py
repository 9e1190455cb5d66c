"""The paths of the contract, as an ASGI application: /ping, /invocations, /execution-parameters.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html and, for the last one,
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from moorage.serving import wire
from moorage.serving.access import AccessLog
from moorage.serving.arena import Arena, Slot
from moorage.serving.dispatch import Dispatcher, Pending, Reject
from moorage.serving.metrics import Metrics
from moorage.serving.settings import ServeSettings
from moorage.serving.wire import BROKEN, INLINE, LAST, NOWHERE

RETURNED = 256 * 1024
"""Bytes of an answer that a client has taken before the model process is told so."""

LEFT = 499
"""In metrics and log: the client did not wait for its answer."""

_ID = re.compile(rb"[A-Za-z0-9._:/=+-]{1,128}")
_IDS = (b"x-request-id", b"x-amzn-sagemaker-inference-id", b"x-amzn-requestid")
_BOOT = secrets.token_hex(4)
_JSON = b"application/json"

Scope = Any
logger = logging.getLogger("moorage")


class _Waiting:
    """The coroutine that answers a client, as the dispatcher sees it. client: whether there is one still."""

    __slots__ = ("_event", "chunks", "first", "result")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first: asyncio.Future[wire.AnswerFrame | Reject] = loop.create_future()
        self.chunks: deque[tuple[int, bytes]] = deque()
        self._event: asyncio.Event | None = None

    def begin(self, answer: wire.AnswerFrame) -> None:
        if not self.first.done():
            self.first.set_result(answer)

    def chunk(self, flags: int, data: bytes) -> None:
        self.chunks.append((flags, data))
        if self._event is not None:
            self._event.set()

    def fail(self, reject: Reject) -> None:
        if self.first.done():
            self.chunk(LAST | BROKEN, b"")
        else:
            self.first.set_result(reject)

    async def next(self) -> tuple[int, bytes]:
        if not self.chunks:
            self._event = asyncio.Event()
            await self._event.wait()
            self._event = None
        return self.chunks.popleft()


class App:
    """alive: what /ping says. loading: whether there has been no model yet. workers: model processes."""

    def __init__(
        self, settings: ServeSettings, *, dispatcher: Dispatcher, arena: Arena, metrics: Metrics, access: AccessLog,
        alive: Callable[[], bool], loading: Callable[[], bool], workers: int, loop: asyncio.AbstractEventLoop,
    ) -> None:  # fmt: skip
        self._settings, self._dispatcher, self._arena = settings, dispatcher, arena
        self._metrics, self._access, self._alive, self._loading, self._loop = metrics, access, alive, loading, loop
        self._most, self._timeout = settings.max_body_bytes, settings.request_timeout
        self._numbers = itertools.count(1)
        parameters = {
            "MaxConcurrentTransforms": 2 * settings.max_batch_size * workers,
            "BatchStrategy": "MULTI_RECORD" if settings.max_batch_size > 1 else "SINGLE_RECORD",
            "MaxPayloadInMB": int(settings.max_body_mb),
        }
        self._parameters = json.dumps(parameters).encode()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/invocations" and method == "POST":
            await self._invocation(scope, receive, send)
        elif path == "/ping" and method in ("GET", "HEAD"):
            await _say(send, 200 if self._alive() else 503, b"", b"text/plain")
        elif path == "/execution-parameters" and method in ("GET", "HEAD"):
            await _say(send, 200, self._parameters, _JSON)
        elif path in _METHODS:
            await _tell(send, 405, f"{path} is asked by {_METHODS[path]}", more=[(b"allow", _METHODS[path].encode())])
        else:
            await _tell(send, 404, "the paths here are /ping, /invocations and /execution-parameters")

    # One request

    async def _invocation(self, scope: Scope, receive: Any, send: Any) -> None:
        started = time.perf_counter()
        arrived = time.monotonic()
        head = _Head(scope["headers"])
        request_id = head.id or f"{_BOOT}-{next(self._numbers)}".encode()
        waiting = _Waiting(self._loop)
        pending: Pending | None = None
        status, size_in, size_out, batch, queued = 500, 0, 0, 0, 0.0
        try:
            if self._loading():
                raise Reject(503, "the model is being loaded; try again", reason="loading", retry_after=5)
            body, slot, size_in = await self._body(head, receive)
            head_text = wire.request_head(request_id, head.content_type, head.accept, head.attributes, scope["headers"])
            pending = Pending(
                sink=waiting, head=head_text, body=body, slot=slot, arrived=arrived, deadline=arrived + self._timeout
            )
            scope["moorage"].left = lambda: waiting.fail(_left())
            try:
                self._dispatcher.submit(pending)
            except Reject:
                pending.release()
                raise
            answer = await waiting.first
            if isinstance(answer, Reject):
                raise answer
            status, batch, queued = answer.status, answer.batch_size, pending.sent - arrived
            size_out = await self._send(send, answer, pending, request_id, scope["moorage"].transport.abort)
        except Reject as reject:
            status = reject.status
            if status != LEFT:
                self._metrics.rejected(reject.reason)
                close = status in (408, 413)
                size_out = await _reject(send, reject, request_id, head.attributes, close=close)
        finally:
            scope["moorage"].left = None
            if pending is not None and not pending.over:
                self._dispatcher.leave(pending)
            seconds = time.perf_counter() - started
            self._metrics.answered(status, seconds, batch, queued)
            self._access.write(
                request_id=request_id.decode("latin-1"), method="POST", path="/invocations", status=status,
                seconds=seconds, bytes_in=size_in, bytes_out=size_out, batch_size=batch, queue_seconds=queued,
            )  # fmt: skip

    # Its body

    async def _body(self, head: _Head, receive: Any) -> tuple[bytes, Slot | None, int]:
        """The body, short; or a slot with it; and its size. Raises Reject."""
        if head.length > self._most:
            raise self._too_large()
        message = await receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body"):
            if message["type"] == "http.disconnect":
                raise _left()
            if len(body) <= INLINE:
                return body, None, len(body)
            if len(body) > self._most:
                raise self._too_large()
            slot = self._slot(len(body))
            slot.view[:] = body
            return b"", slot, len(body)
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                if head.length > INLINE:
                    return await self._into_slot(head.length, body, receive)
                return await self._gathered(body, receive)
        except TimeoutError:
            seconds = f"{self._settings.body_timeout:g} s"
            raise Reject(408, f"the body did not come within {seconds}", reason="body_timeout") from None

    async def _into_slot(self, length: int, body: bytes, receive: Any) -> tuple[bytes, Slot | None, int]:
        """Straight into the arena, for its length is known."""
        slot, at = self._slot(length), 0
        try:
            while True:
                slot.view[at : at + len(body)] = body
                at += len(body)
                if at == length:
                    return b"", slot, length
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _left()
                body = message.get("body", b"")
        except BaseException:
            slot.free()
            raise

    async def _gathered(self, body: bytes, receive: Any) -> tuple[bytes, Slot | None, int]:
        """In chunks, of which nobody knows how many."""
        gathered = bytearray(body)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _left()
            gathered += message.get("body", b"")
            if len(gathered) > self._most:
                raise self._too_large()
            if not message.get("more_body"):
                break
        if len(gathered) <= INLINE:
            return bytes(gathered), None, len(gathered)
        slot = self._slot(len(gathered))
        slot.view[:] = gathered
        return b"", slot, len(gathered)

    def _slot(self, size: int) -> Slot:
        slot = self._arena.slot(size)
        if slot is None:
            message = "no memory is left for bodies while so many requests wait; try again"
            raise Reject(503, message, reason="memory_full", retry_after=1)
        return slot

    def _too_large(self) -> Reject:
        limit = self._settings.max_body_mb
        return Reject(413, f"the body is larger than {limit:g} MB, MOORAGE_MAX_BODY_MB", reason="too_large")

    # Its answer

    async def _send(
        self, send: Any, answer: wire.AnswerFrame, pending: Pending, request_id: bytes, abort: Callable[[], None]
    ) -> int:
        """Bytes sent of the body. abort: cuts the connection, as there is no other way to say that it is not whole."""
        waiting = pending.sink
        assert isinstance(waiting, _Waiting)
        texts = answer.texts
        headers = [(b"content-type", texts[0]), (b"x-request-id", request_id)]
        if texts[1]:
            headers.append((b"x-amzn-sagemaker-custom-attributes", texts[1]))
        for at in range(2, len(texts) - 1, 2):
            headers.append((texts[at], texts[at + 1]))
        if answer.length != NOWHERE:
            headers.append((b"content-length", str(answer.length).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if answer.flags & LAST:
            await send({"type": "http.response.body", "body": answer.body})
            return len(answer.body)
        sent = taken = len(answer.body)
        if answer.body:
            await send({"type": "http.response.body", "body": answer.body, "more_body": True})
        while True:
            if taken >= RETURNED:
                self._dispatcher.credit(pending, taken)
                taken = 0
            flags, data = await waiting.next()
            if flags & BROKEN:
                abort()
                return sent
            more = not flags & LAST
            await send({"type": "http.response.body", "body": data, "more_body": more})
            sent, taken = sent + len(data), taken + len(data)
            if not more:
                return sent


class _Head:
    """What matters here of a request's headers."""

    __slots__ = ("accept", "attributes", "content_type", "id", "length")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.content_type = self.accept = self.attributes = self.id = b""
        self.length = -1
        for name, value in headers:
            if name == b"content-type":
                self.content_type = value
            elif name == b"accept":
                self.accept = value
            elif name == b"content-length":
                self.length = int(value) if value.isdigit() else -1
            elif name == b"x-amzn-sagemaker-custom-attributes":
                self.attributes = value
            elif name in _IDS and not self.id and _ID.fullmatch(value):
                self.id = value


_METHODS = {"/invocations": "POST", "/ping": "GET", "/execution-parameters": "GET"}


def _left() -> Reject:
    return Reject(LEFT, "the client has left", reason="left")


async def _reject(send: Any, reject: Reject, request_id: bytes, attributes: bytes, *, close: bool) -> int:
    more = [(b"x-request-id", request_id)]
    if attributes:
        more.append((b"x-amzn-sagemaker-custom-attributes", attributes))
    if reject.retry_after is not None:
        more.append((b"retry-after", str(reject.retry_after).encode()))
    if close:
        more.append((b"connection", b"close"))  # the rest of its body is not read
    return await _tell(send, reject.status, reject.message, request_id, more)


async def _tell(
    send: Any, status: int, message: str, request_id: bytes = b"", more: list[tuple[bytes, bytes]] | None = None
) -> int:
    told = {"error": message, **({"request_id": request_id.decode("latin-1")} if request_id else {})}
    body = json.dumps(told).encode()
    await _say(send, status, body, _JSON, more or [])
    return len(body)


async def _say(send: Any, status: int, body: bytes, kind: bytes, more: list[tuple[bytes, bytes]] | None = None) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
