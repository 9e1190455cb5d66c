"""`serve` under load on loopback: small JSON, /ping while the model holds the interpreter, batches, 1 MB of NPY.

By wrk, an equal number of clients each, in turns: while one server is asked, the others are stopped.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from bench.harness import OUT, PROGRAMS, Absent, PeerFailed, Row, compare, run, take_turns
from bench.serving_load import http_request, offering
from bench.serving_server import Server, moorage, port, running

CLIENTS = 16
SECONDS = 4
FLASK = {"Flask": ("-k", "gthread", "--threads", str(CLIENTS)), "Flask, two": ("-w", "2")}
"""One process with one model, as ours; and two of them, each with a model and one request at a time."""
ROUNDS = 3


def measure() -> list[Row]:
    if not shutil.which("wrk"):
        raise Absent("there is no wrk: apt-get install wrk")
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        folder = Path(name)
        return [*_echo(folder), *_ping(folder), *_batches(folder), *_npy(folder)]


@contextmanager
def _peer(name: str, folder: Path, *command: str) -> Iterator[Server]:
    """A peer that listens on a free port, for which PORT stands in `command`."""
    listen = port()
    told = [part.replace("PORT", str(listen)) for part in command]
    ready = "/health" if name == "LitServe" else "/ping"
    with running(Server(name, told, folder=folder, port=listen), ready=ready) as server:
        yield server


def _wrk(server: Server, path: str, script: Path) -> float:
    """Requests a second. Raises PeerFailed for an answer that is not 200."""
    url = f"http://127.0.0.1:{server.address[1]}{path}"
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{SECONDS}s", "--latency", "-s", str(script), url]
    output = run(command, env={"PATH": "/usr/bin:/bin"}, timeout=SECONDS + 30)
    found = re.search(r"Requests/sec: +([\d.]+)", output)
    if not found or "Non-2xx" in output or "Socket errors" in output:
        raise server.failed(f"was asked in vain: {output}")
    return float(found[1])


def _alone(servers: Mapping[str, Server], name: str, measure: Callable[[Server], float]) -> float:
    servers[name].wake()
    try:
        return measure(servers[name])
    finally:
        servers[name].sleep()


def _script(folder: Path, body: bytes, content_type: str) -> Path:
    """What wrk posts."""
    (folder / "body").write_bytes(body)
    path = folder / "post.lua"
    path.write_text(
        f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{content_type}"\n'
        f'local file = io.open("{folder / "body"}", "rb")\nwrk.body = file:read("*a")\nfile:close()\n'
    )
    return path


def _turns(
    servers: Mapping[str, Server], paths: Mapping[str, str], script: Path, *, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    for server in servers.values():
        server.sleep()
    contenders = {
        name: partial(_alone, servers, name, partial(_wrk, path=paths[name], script=script)) for name in servers
    }
    return take_turns(contenders, rounds=rounds)


def _echo(folder: Path) -> Iterator[Row]:
    python, bin_folder = sys.executable, Path(sys.executable).parent
    script = _script(folder, json.dumps({"instances": [[1.0, 2.0, 3.0]]}).encode(), "application/json")
    with ExitStack() as stack:
        enter = stack.enter_context
        servers = {
            "moorage": enter(moorage("serve_echo", folder=folder, access_log="false")),
            "moorage, access log": enter(moorage("serve_echo", folder=folder, name="moorage logged")),
            "Starlette": enter(_peer("Starlette", folder, python, str(PROGRAMS / "peer_starlette.py"), "PORT")),
            **{
                name: enter(
                    _peer(name, folder, str(bin_folder / "gunicorn"), "-b", "127.0.0.1:PORT", *options,
                          "--chdir", str(PROGRAMS), "peer_flask:app")
                )
                for name, options in FLASK.items()
            },
            "LitServe": enter(_peer("LitServe", folder, python, str(PROGRAMS / "peer_litserve.py"), "PORT")),
        }  # fmt: skip
        paths = {name: "/invocations" if name.startswith("moorage") else "/echo" for name in servers}
        taken = _turns(servers, paths, script)
    for name, ours, against, target in (
        ("small JSON, 16 clients", "moorage", "Starlette", ">= 0.5"),
        ("small JSON, 16 clients", "moorage", "LitServe", ">= 4"),
        ("small JSON, 16 clients", "moorage", "Flask", ">= 3"),
        ("small JSON, 16 clients", "moorage", "Flask, two", ""),
        ("the same, with the access log", "moorage, access log", "Starlette", ""),
    ):
        label = {
            "Starlette": "Starlette, no model process", "Flask": "gunicorn gthread + Flask",
            "Flask, two": "gunicorn + Flask, 2 models",
        }.get(against, against)  # fmt: skip
        yield compare(name, "req/s", taken[ours], taken[against], against=label, target=target)


def _npy(folder: Path) -> Iterator[Row]:
    array = np.random.default_rng(0).standard_normal((512, 512), np.float32)
    file = folder / "array.npy"
    np.save(file, array)
    script = _script(folder, file.read_bytes(), "application/x-npy")
    with ExitStack() as stack:
        servers = {
            "moorage": stack.enter_context(moorage("serve_npy", folder=folder, name="npy", access_log="false")),
            "Starlette": stack.enter_context(
                _peer("Starlette npy", folder, sys.executable, str(PROGRAMS / "peer_starlette.py"), "PORT")
            ),
        }
        taken = _turns(servers, {"moorage": "/invocations", "Starlette": "/npy"}, script)
    yield compare(
        "1 MB of NPY", "req/s", taken["moorage"], taken["Starlette"], against="Starlette, np.load", target=">= 0.7"
    )


def _ping(folder: Path) -> Iterator[Row]:
    """/ping by 16 clients in a closed loop, while requests keep the model in C code that holds the interpreter."""
    with moorage("serve_holds", folder=folder, name="holds", max_queue=64) as server:
        asked = http_request("/invocations", b"[1]", content_type="application/json")
        with offering(server.address, asked, rate=5, timeout=60):
            time.sleep(1)
            output = run(
                ["wrk", "-t1", f"-c{CLIENTS}", "-d8s", "--latency", f"http://127.0.0.1:{server.address[1]}/ping"],
                env={"PATH": "/usr/bin:/bin"}, timeout=60,
            )  # fmt: skip
    found = re.search(r"99% +([\d.]+)(us|ms|s)", output)
    if not found:
        raise PeerFailed(f"wrk said nothing of the 99th percentile: {output}")
    seconds = float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]
    yield Row(
        name="/ping p99 while the model holds the interpreter", value=seconds * 1000, unit="ms", against="10 ms",
        ratio=seconds / 0.01, target="<= 1", holds=seconds <= 0.01,
    )  # fmt: skip


def _batches(folder: Path) -> Iterator[Row]:
    """Saturated by 64 clients; p99 as wrk sees it."""
    script = _script(folder, json.dumps([[0.5] * 16]).encode(), "application/json")
    seen: dict[str, tuple[list[float], list[float]]] = {}
    with ExitStack() as stack:
        servers = {
            "32": stack.enter_context(
                moorage("serve_matrix", folder=folder, name="batched", max_batch_size=32, access_log="false")
            ),
            "1": stack.enter_context(moorage("serve_matrix", folder=folder, name="single", access_log="false")),
        }
        for server in servers.values():
            server.sleep()
        for number in range(ROUNDS + 1):
            for name, server in servers.items():
                server.wake()
                rate, p99 = _saturated(server, script)
                server.sleep()
                print(f"  round {number} batches of {name}: {rate:.4g} req/s, p99 {p99:.4g} s", file=sys.stderr)
                if number:
                    rates, late = seen.setdefault(name, ([], []))
                    rates.append(rate)
                    late.append(p99)
    yield compare(
        "a model bound by its weights, 64 clients", "req/s", seen["32"][0], seen["1"][0],
        against="no batches", target=">= 3",
    )  # fmt: skip
    yield compare("its p99", "s", seen["32"][1], seen["1"][1], against="no batches", target="<= 1")


def _saturated(server: Server, script: Path) -> tuple[float, float]:
    url = f"http://127.0.0.1:{server.address[1]}/invocations"
    output = run(
        ["wrk", "-t1", "-c64", f"-d{SECONDS}s", "--latency", "--timeout", "30s", "-s", str(script), url],
        env={"PATH": "/usr/bin:/bin"}, timeout=SECONDS + 60,
    )  # fmt: skip
    rate, p99 = re.search(r"Requests/sec: +([\d.]+)", output), re.search(r"99% +([\d.]+)(us|ms|s)", output)
    if not rate or not p99 or "Non-2xx" in output:
        raise server.failed(f"was asked in vain: {output}")
    return float(rate[1]), float(p99[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[p99[2]]
