"""The front of `serve` as its clients see it: a real server, a real model process, and everything that may go wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from servers import Reply, Server, handlers, serving
from support import wait_until

CODE = """
import ctypes, json, os, time
from moorage.serving.exchange import RequestError

def model_fn(model_dir):
    return os.getpid()

def input_fn(data, content_type):
    return data if isinstance(data, str) else len(data)

def predict_fn(data, model, context):
    if isinstance(data, int):
        return {"length": data}
    asked = json.loads(data)
    if "refuse" in asked:
        raise RequestError(asked["refuse"])
    if "fail" in asked:
        raise ValueError("a secret of the house")
    if "sleep" in asked:
        print("asleep", flush=True)
        time.sleep(asked["sleep"])
    if "hold" in asked:
        ctypes.PyDLL(None).usleep(int(asked["hold"] * 1e6))  # with the interpreter
    if "stream" in asked:
        return stream(asked)
    return {"pid": model, "headers": sorted(context.get_all_request_header())}

def stream(asked):
    try:
        for number in range(asked["stream"]):
            if number == asked.get("break"):
                raise ValueError("in the middle")
            yield b"x" * asked.get("size", 1)
            time.sleep(asked.get("every", 0))
    finally:
        print("stream over after", number + 1, flush=True)

def output_fn(prediction, accept):
    return prediction if hasattr(prediction, "__next__") else json.dumps(prediction)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        handlers(tmp_path_factory.mktemp("front"), CODE), max_body_mb=1, request_timeout=2, max_queue=4,
        header_timeout=1, body_timeout=1, max_connections=50, stuck_timeout=4,
    ) as server:  # fmt: skip
        yield server


def ask(server: Server, **asked: object) -> Reply:
    return server.ask(body=json.dumps(asked), content_type="application/json")


def test_the_paths(server: Server) -> None:
    assert server.ping() == 200
    parameters = server.ask("/execution-parameters", method="GET").json()
    assert parameters == {"MaxConcurrentTransforms": 2, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 1}
    assert server.ask("/models", method="GET").status == 404
    wrong = server.ask("/invocations", method="GET")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")


def test_headers_are_carried_through_and_unknown_ones_ignored(server: Server) -> None:
    reply = server.ask(
        body="{}", content_type="application/json", accept="application/json", x_unknown="1",
        X_Amzn_SageMaker_Custom_Attributes="trace=7", X_Amzn_SageMaker_Inference_Id="mine-1",
    )  # fmt: skip
    assert reply.status == 200 and reply.headers["x-request-id"] == "mine-1"
    assert reply.headers["x-amzn-sagemaker-custom-attributes"] == "trace=7"
    assert "x-unknown" in reply.json()["headers"]
    server.wait_for('"id":"mine-1"')


def test_what_the_client_and_the_log_are_told_of_a_failure(server: Server) -> None:
    failed = ask(server, fail=1)
    told = failed.json()
    assert failed.status == 500 and "secret" not in told["error"] and "Traceback" not in told["error"]
    server.wait_for(f"request {told['request_id']} failed")
    server.wait_for("ValueError: a secret of the house")
    refused = ask(server, refuse="not that")
    assert (refused.status, refused.json()["error"]) == (422, "not that")


@pytest.mark.parametrize("size", [0, 100, 16 * 1024, 16 * 1024 + 1, 2**20])
def test_bodies_of_any_size(server: Server, size: int) -> None:
    reply = server.ask(body=b"x" * size, content_type="application/octet-stream")
    assert (reply.status, reply.json()) == (200, {"length": size})


def test_a_body_that_comes_in_chunks(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n")
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert b'{"length": 163840}' in received(connection, b"}")


def received(connection: socket.socket, until: bytes = b"") -> bytes:
    """What comes until `until`, or the end."""
    data = b""
    while not (until and until in data):
        try:
            more = connection.recv(65536)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more
    return data


def head(length: int) -> bytes:
    return f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def test_a_body_that_is_too_large_is_refused_before_it_has_come(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(head(2**40) + b"x")
        reply = received(connection)
    assert b" 413 " in reply and b"MOORAGE_MAX_BODY_MB" in reply
    with server.connect() as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(17):
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert b" 413 " in received(connection)


def test_clients_that_are_slow_or_leave(server: Server) -> None:
    with server.connect() as slow_head, server.connect() as slow_body, server.connect() as silent:
        slow_head.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\n")
        slow_body.sendall(head(100) + b"x")
        assert received(slow_head) == b""
        assert b" 408 " in received(slow_body)
        assert received(silent) == b""
    with server.connect() as leaving:
        leaving.sendall(head(100) + b"x")
    assert ask(server).status == 200


def test_garbage_is_answered_or_hung_up_on(server: Server) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /%2e%2e/%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"A" * 100_000,
    ):
        with server.connect() as connection:
            connection.sendall(data)
            reply = received(connection)
            assert reply == b"" or re.match(rb"HTTP/1.1 4\d\d ", reply), (data[:60], reply)
    assert server.ping() == 200


def test_more_connections_than_there_may_be(server: Server) -> None:
    connections = [server.connect() for _ in range(80)]
    try:
        wait_until(lambda: sum(is_closed(connection) for connection in connections) >= 30, what="the rest closed")
    finally:
        for connection in connections:
            connection.close()
    wait_until(lambda: server.ping() == 200, what="/ping")


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def at_once(number: int, call: Callable[[int], Reply]) -> list[Reply]:
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(call, range(number)))


def test_a_full_queue_and_a_deadline(server: Server) -> None:
    replies = at_once(12, lambda _: ask(server, sleep=0.2))
    # 504 on a busy machine: what is in the queue waits for what is before it.
    assert {200, 503} <= {reply.status for reply in replies} <= {200, 503, 504}
    refused = [reply for reply in replies if reply.status == 503]
    assert all(
        reply.headers["retry-after"] == "1" and "the queue is full" in reply.json()["error"] for reply in refused
    )
    assert sum(reply.status == 200 for reply in replies) >= 5
    late = ask(server, sleep=2.5)
    assert late.status == 504 and "MOORAGE_REQUEST_TIMEOUT" in late.json()["error"]
    assert ask(server).status == 200


def test_ping_answers_whatever_the_model_does(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(ask, server, hold=1.0)
        server.ask("/execution-parameters", method="GET")
        took = []
        while not holding.done():
            started = time.perf_counter()
            assert server.ping() == 200
            took.append(time.perf_counter() - started)
    assert holding.result().status == 200 and len(took) > 20 and sorted(took)[len(took) // 2] < 0.1


def test_a_stream_comes_as_it_is_made_and_ends_when_its_client_leaves(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(asked(stream=3, every=0.3))
        data = received(connection, b"1\r\nx\r\n")
        assert b"transfer-encoding: chunked" in data and b"0\r\n\r\n" not in data
        assert received(connection, b"0\r\n\r\n").endswith(b"0\r\n\r\n")
    server.wait_for("stream over after 3")
    with server.connect() as connection:
        connection.sendall(asked(stream=1000, every=0.05))
        received(connection, b"1\r\nx\r\n")
    wait_until(lambda: re.search(r"stream over after \d+\n", server.log.partition("over after 3\n")[2]), what="its end")
    assert int(re.findall(r"stream over after (\d+)", server.log)[-1]) < 100
    assert ask(server).status == 200


def asked(**given: object) -> bytes:
    body = json.dumps(given).encode()
    return head(len(body)).replace(b"\r\n\r\n", b"\r\nContent-Type: application/json\r\n\r\n") + body


def test_a_stream_that_breaks_is_not_taken_for_a_whole_one(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(asked(stream=9, **{"break": 2}))
        data = received(connection)
    assert data.count(b"1\r\nx\r\n") == 2 and not data.endswith(b"0\r\n\r\n")
    server.wait_for("its answer broke off")


def test_a_client_that_does_not_read_holds_no_memory(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(asked(stream=400, size=2**20))
        total = len(received(connection, b"\r\n\r\n"))
        time.sleep(0.5)
        # What lies in sockets on the way is all that was made.
        assert ask(server).status == 200
        assert server.rss() < 400 * 2**20
        while total < 400 * 2**20:
            total += len(connection.recv(2**20))
    server.wait_for("stream over after 400")


def test_a_killed_model_process_fails_what_it_had_begun_and_nothing_else(server: Server) -> None:
    (before,) = server.models
    with ThreadPoolExecutor(4) as pool:
        asleep = server.log.count("asleep")
        begun = pool.submit(ask, server, sleep=20)
        server.wait_for("asleep", times=asleep + 1)
        others = [pool.submit(ask, server) for _ in range(3)]
        os.kill(before, signal.SIGKILL)
        lost = begun.result()
        assert lost.status == 503 and lost.headers["retry-after"] == "1"
        wait_until(lambda: server.ping() == 200 and server.models != [before], timeout=30, what="another")
        statuses = {other.result().status for other in others}
    assert statuses <= {200, 504} and server.models != [before]
    server.wait_for("was killed by SIGKILL: 1 requests failed with it")
    assert ask(server).json()["pid"] != before


def test_a_stuck_model_process_is_replaced_with_its_stacks_in_the_log(server: Server) -> None:
    (before,) = server.models
    assert ask(server, hold=30).status == 504
    wait_until(lambda: server.models not in ([before], []) and server.ping() == 200, timeout=30, what="another")
    server.wait_for("is stuck, and is ended: being at one batch for longer than 4 s (MOORAGE_STUCK_TIMEOUT)")
    server.wait_for("in predict_fn")


def test_a_stop_answers_what_was_accepted(tmp_path: Path) -> None:
    with serving(handlers(tmp_path, CODE)) as server, ThreadPoolExecutor(8) as pool:
        idle = server.connect()
        running = [pool.submit(ask, server, sleep=0.2) for _ in range(8)]
        wait_until(lambda: '"status":200' in server.log, what="the first")
        started = time.monotonic()
        server.stop()
        assert [future.result().status for future in running] == [200] * 8
        assert server.ends() == 0 and time.monotonic() - started < 5
        idle.close()
    assert "exit code 0" in server.log


def test_a_model_that_cannot_be_loaded_ends_the_container_with_the_reason(tmp_path: Path) -> None:
    handlers(tmp_path, "def model_fn(model_dir):\n    raise OSError('no such disk')\n")
    with serving(tmp_path, ready=False) as server:
        wait_until(lambda: server.ping() == 503, what="/ping")
        loading = ask(server)
        assert loading.status == 503 and "retry-after" in loading.headers
        assert server.ends() == 72
    assert "the model cannot be loaded. model_fn failed: OSError: no such disk" in server.log
    assert server.log.count("could not load the model") == 3


def test_requests_are_joined_and_one_that_is_wrong_fails_alone(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "def model_fn(d): return lambda x: (print('batch of', len(x), flush=True), x * 2)[1]\n"
        "def predict_fn(x, model): return model(x)\n"
    )
    (tmp_path / "model.json").write_text("{}")
    with serving(handlers(tmp_path, code), max_batch_size=8, max_queue_delay_us=300_000) as server:
        bodies = [b"[[1, 2]]"] * 7 + [b"nonsense"]
        barrier = threading.Barrier(8)

        def one(number: int) -> Reply:
            barrier.wait()
            return server.ask(body=bodies[number], content_type="application/json")

        replies = at_once(8, one)
    assert [reply.status for reply in replies] == [200] * 7 + [400]
    assert replies[0].json() == [[2.0, 4.0]]
    assert "batch of 7" in server.log


def test_the_front_never_loads_torch() -> None:
    import subprocess
    import sys

    code = "import sys, moorage.serving.main; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_served_is_said_at_once(tmp_path: Path, server: Server) -> None:
    for folder, env, code, says in (
        (tmp_path / "nowhere", {}, 78, "there is no model folder"),
        (tmp_path, {"MOORAGE_MAX_BATCH_SIZ": "2"}, 78, "MOORAGE_MAX_BATCH_SIZ"),
        (tmp_path, {"MOORAGE_DEVICE": "cuda"}, 78, "setting device=cuda"),
        (tmp_path, {"SAGEMAKER_BIND_TO_PORT": str(server.port)}, 78, "cannot be listened on: EADDRINUSE"),
    ):
        with serving(folder, ready=False, env=env) as failed:
            assert failed.ends() == code
        assert says in failed.log.replace(". ", ": "), failed.log
