"""A proxy in front of an S3 server that does what S3, and the way to it, do on a bad day. Real sockets on both sides.

It also does what moto leaves out: compare the CRC-32 of what comes, and the owner that the bucket is expected to have.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import http.client
import os
import random
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

OWNER = "123456789012"
"""The account that every bucket belongs to."""


class Fault(enum.StrEnum):
    SLOW_DOWN = "503 SlowDown"
    INTERNAL_ERROR = "500 InternalError"
    RESET_REQUEST = "reset in the middle of the request"
    FLIPPED_BIT = "a flipped bit on the way there"
    LOST_ANSWER = "reset before the answer to what was done"
    RESET_ANSWER = "reset in the middle of the answer"
    SHORT_ANSWER = "an answer shorter than its length"
    STALLED_ANSWER = "an answer that stalls"


_CODES = {Fault.SLOW_DOWN: (503, "SlowDown"), Fault.INTERNAL_ERROR: (500, "InternalError")}


class Faults:
    """Which request meets which fault; a body that is cut or changed has to be there, or it is a reset.

    rate: of the requests that meet one, 0 to 1.
    """

    def __init__(self, seed: object, *, rate: float = 0.0, kinds: Collection[Fault] = tuple(Fault)) -> None:
        self._dice, self._lock = random.Random(str(seed)), threading.Lock()
        self.rate, self.kinds = rate, sorted(kinds)
        self.denied = ""
        """Regular expression: of requests, as METHOD and path with query, that the role has no permission for."""
        self.held = ""
        """Regular expression: the first request like that waits, `reached`, until it is `released`."""
        self.reached, self.released = threading.Event(), threading.Event()
        self.counts: Counter[Fault] = Counter()
        self.requests: list[tuple[str, float]] = []
        """METHOD and path, and when it came, as time.monotonic()."""
        self.sent = 0
        """Bytes of bodies that were answered."""
        self.over = threading.Event()
        self.endpoint = ""
        """Of the proxy that these faults are met on the way through."""

    def hold(self, request: str) -> None:
        """Let the next request like that wait."""
        self.reached.clear()
        self.released.clear()
        self.held = request

    def next(self, request: str) -> Fault | None:
        with self._lock:
            self.requests.append((request, time.monotonic()))
            return self._dice.choice(self.kinds) if self._dice.random() < self.rate else None

    def part(self, whole: int) -> int:
        """A place in so many bytes, before their end."""
        with self._lock:
            return self._dice.randrange(max(1, whole))

    def send(self, size: int) -> None:
        with self._lock:
            self.sent += size

    def count(self, fault: Fault) -> None:
        with self._lock:
            self.counts[fault] += 1


@contextlib.contextmanager
def faulty(endpoint: str, faults: Faults) -> Iterator[str]:
    """The endpoint of a proxy in front of `endpoint`."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.target, server.faults = urlsplit(endpoint).netloc, faults
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        faults.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        yield faults.endpoint
    finally:
        faults.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    target: str
    faults: Faults
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go in the middle are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_any(self) -> None:
        faults = self.server.faults
        fault = faults.next(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length", 0))
        if fault is Fault.FLIPPED_BIT and not (length and "x-amz-checksum-crc32" in self.headers):
            fault = Fault.RESET_REQUEST
        if fault is Fault.RESET_REQUEST:
            faults.count(fault)
            self.rfile.read(faults.part(length))
            return self._reset()
        body = self.rfile.read(length)
        if len(body) < length:
            return self._reset()
        if fault is Fault.FLIPPED_BIT:
            faults.count(fault)
            place = faults.part(length)
            body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        if fault in _CODES:
            faults.count(fault)
            return self._refuse(*_CODES[fault])
        if faults.held and not faults.reached.is_set() and re.search(faults.held, f"{self.command} {self.path}"):
            faults.reached.set()
            faults.released.wait(60)
        if refusal := self._refusal(body):
            return self._refuse(*refusal)
        return self._answer(fault, *self._forward(body))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _refusal(self, body: bytes) -> tuple[int, str] | None:
        crc = self.headers.get("x-amz-checksum-crc32")
        if crc and crc != base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode():
            return 400, "BadDigest"
        denied = self.server.faults.denied
        if denied and re.search(denied, f"{self.command} {self.path}"):
            return 403, "AccessDenied"
        if self.headers.get("x-amz-expected-bucket-owner", OWNER) != OWNER:
            return 403, "AccessDenied"
        return None

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=30)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body or None, dict(self.headers.items()))
            response = connection.getresponse()
            return response, response.read()

    def _answer(self, fault: Fault | None, response: http.client.HTTPResponse, data: bytes) -> None:
        faults = self.server.faults
        cut = fault in (Fault.RESET_ANSWER, Fault.SHORT_ANSWER, Fault.STALLED_ANSWER)
        if fault is Fault.LOST_ANSWER or (cut and not data):
            faults.count(Fault.LOST_ANSWER)
            return self._reset()
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = response.headers["Content-Length"] if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if cut:
            data = data[: faults.part(len(data))]
        self.wfile.write(data)
        faults.send(len(data))
        if not cut or fault is None:
            return None
        faults.count(fault)
        if fault is Fault.RESET_ANSWER:
            return self._reset()
        if fault is Fault.STALLED_ANSWER:
            faults.over.wait(30)
        self.close_connection = True
        return None

    def _refuse(self, status: int, code: str) -> None:
        data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Not close(): what else holds the socket would delay it, and end it in good order.
        os.close(self.connection.detach())
