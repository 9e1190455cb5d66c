"""Whatever comes over the wire: an answer or a clean close, never a traceback of ours, never a server that is gone."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from conftest import FULL
from servers import Server, handlers, serving

CODE = """
import torch
def model_fn(model_dir): return torch.nn.Linear(3, 2)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = handlers(tmp_path_factory.mktemp("fuzz"), CODE)
    # What a request must be is known, so that none of them is the model's to fail on.
    told = {"example": {"file": "example.npy", "dtype": "float32", "shape": [None, 3]}}
    (folder / "model.json").write_text(json.dumps(told))
    np.save(folder / "example.npy", np.ones((1, 3), np.float32))
    with serving(folder, max_body_mb=0.2, header_timeout=1, body_timeout=1) as server:
        yield server


def npy(shape: str, dtype: str) -> bytes:
    """A header that says so, and 24 bytes."""
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00v\x00" + head.ljust(118).encode() + b"\0" * 24


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)
BODIES = st.one_of(
    JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.builds(lambda key, value: json.dumps({key: value}).encode("utf-8", "surrogatepass"),
              st.sampled_from(["instances", "inputs"]), JSON),
    st.binary(max_size=300),
    st.binary(max_size=120).map(lambda tail: b"\x93NUMPY\x01\x00" + tail),
    st.builds(
        npy,
        st.sampled_from(["(2, 3)", "(1, 6)", "(10**12,)", "(-1, 3)", "()", "(2**63, 2**63)"]),
        st.sampled_from(["<f4", "|O", "<U9", "<c16", "|b1", "<f8"]),
    ),
    st.just(b"[" * 50_000), st.just(b"1," * 40_000), st.just(b"\xff\xfe"),
)  # fmt: skip
TYPES = st.sampled_from(
    [*["application/json"] * 6, *["application/x-npy"] * 3, "text/csv",
      "application/jsonlines", "text/xml", "", "a/b; charset=x",
     "application/json; charset=utf-16", ";;;", "é", "multipart/form-data"]
)  # fmt: skip
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["Accept", "X-Amzn-SageMaker-Custom-Attributes", "X-Request-Id", "Expect", "Host", "X-Any"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
        | st.sampled_from(["*/*", "text/csv;q=0.1", "100-continue", "../../etc/passwd", "${jndi:x}", ", ,;q=x"]),
    ),
    max_size=4,
)
PATHS = st.sampled_from(
    ["/invocations"] * 6 + ["/ping", "/", "//invocations", "/invocations/../ping", "/%00", "/a?b=c"]
)
POST = ("POST", "/invocations")
METHODS = st.sampled_from(["POST"] * 6 + ["GET", "HEAD", "PUT", "OPTIONS", "TRACE", "WHAT"])


def exchange(server: Server, data: bytes, *, whole: bool = True) -> bytes:
    """whole: it asks for an answer, and for the connection to be closed behind it."""
    with server.connect() as connection:
        try:
            connection.sendall(data)
            if not whole:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while more := connection.recv(65536):
                answer += more
        except (ConnectionResetError, BrokenPipeError):
            return b""
        return answer


def check(server: Server, answer: bytes) -> None:
    if answer:
        assert re.match(rb"(HTTP/1.1 100 Continue\r\n\r\n)?HTTP/1\.[01] [2-5]\d\d ", answer), answer[:200]
        assert b"Traceback" not in answer and b'File "' not in answer, answer
    assert "Exception in ASGI" not in server.log and "the model process ends" not in server.log, server.log[-3000:]
    assert server.process.poll() is None


LIMITS = settings(
    max_examples=5000 if FULL else 150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=not FULL,
)


@given(line=st.tuples(METHODS, PATHS), kind=TYPES, headers=HEADERS, body=BODIES, chunked=st.booleans())
@example(line=POST, kind="application/json", headers=[], body=b"[" * 50_000, chunked=False)
@example(line=POST, kind="application/json", headers=[], body=b'{"instances": [[NaN, 1, 2]]}', chunked=True)
@example(line=POST, kind="application/x-npy", headers=[], body=npy("(10**12,)", "<f4"), chunked=False)
@example(line=POST, kind="application/x-npy", headers=[], body=npy("(2, 3)", "|O"), chunked=False)
@LIMITS
def test_requests_of_any_kind(
    *, server: Server, line: tuple[str, str], kind: str, headers: list[tuple[str, str]], body: bytes, chunked: bool
) -> None:
    method, path = line
    lines = [f"{method} {path} HTTP/1.1", f"Content-Type: {kind}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
    sent = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n" if chunked and body else body
    sent = b"0\r\n\r\n" if chunked and not body else sent
    answer = exchange(server, "\r\n".join([*lines, "", ""]).encode("latin-1") + sent)
    check(server, answer)
    if (method, path) == POST:
        assert answer and b"HTTP/1.1 500" not in answer, (kind, body[:200], answer)


@given(data=st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: b"POST /invocations HTTP/1.1\r\n" + tail))
@LIMITS
def test_bytes_of_any_kind(server: Server, data: bytes) -> None:
    check(server, exchange(server, data, whole=False))


def test_it_is_there_still(server: Server) -> None:
    assert server.ping() == 200
    assert server.ask(body="[[1, 2, 3]]", content_type="application/json").status == 200
    assert len(server.models) == 1 and "is ready" in server.log and server.log.count("is ready after") == 1
