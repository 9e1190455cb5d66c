"""The control channel on real sockets: hosts of the job, strangers, and those who only look like hosts."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import Job
from moorage.contract.config import JobConfig
from moorage.contract.failure import Failure
from moorage.launch import control, door
from moorage.launch.agreement import Agreement
from moorage.launch.control import FirstHost
from moorage.launch.door import LONGEST_HELLO, STRANGERS, job_token
from moorage.launch.loop import Loop
from moorage.launch.ports import free_port
from moorage.launch.uplink import OtherHost
from support import loopback_hosts

HOSTS = loopback_hosts(2)


class Table:
    """One loop with a first host at it, and room for others."""

    def __init__(self, folder: Path, loop: Loop, **settings: Any) -> None:
        self.loop, self.folder = loop, folder
        self.settings = {"control_port": free_port(), "heartbeat_timeout": 5, "join_timeout": 5, **settings}
        self.config = self.config_of(HOSTS[0])
        self.agreement = Agreement(
            hosts=HOSTS, settings=self.config.settings, pick_port=free_port, started=time.monotonic()
        )
        self.first = FirstHost(loop, self.config, self.agreement)
        self.heard: list[dict[str, Any]] = []
        """What the first host's own supervisor was told."""
        self.first.on_message = self.heard.append
        self.first.open()
        self._raw: list[socket.socket] = []
        self._links: list[OtherHost] = []

    def config_of(self, host: str, name: str = "job", **settings: Any) -> JobConfig:
        job = Job(self.folder / host)
        job.env["TRAINING_JOB_NAME"] = name
        job.write("resourceconfig", {"current_host": host, "hosts": list(HOSTS)})
        job.hyperparameters(**{f"moorage_{k}": str(v) for k, v in {**self.settings, **settings}.items()})
        return job.config()

    def until(self, predicate: Callable[[], Any], what: str, timeout: float = 5.0) -> None:
        over = time.monotonic() + timeout
        timer = self.loop.after(timeout, lambda: None)
        self.loop.run(lambda: bool(predicate()) or time.monotonic() >= over)
        timer.cancel()
        assert predicate(), f"{what} did not happen in {timeout} s"

    def pause(self, seconds: float) -> None:
        over = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= over, "a pause")

    def turn(self) -> None:
        """Let the loop look once at what has come."""
        turned: list[bool] = []
        self.loop.soon(lambda: turned.append(True))
        self.loop.run(lambda: bool(turned))

    def raw(self) -> socket.socket:
        """A connection of somebody."""
        connection = socket.create_connection((HOSTS[0], self.config.settings.control_port))
        connection.setblocking(False)
        self._raw.append(connection)
        return connection

    def hello(self, **fields: Any) -> bytes:
        token = job_token(self.config)
        return line({"type": "hello", "host": HOSTS[1], "instance": "one", "token": token, **fields})

    def joined(self) -> bool:
        return not self.agreement.absent()

    def other(self, name: str = "job", **settings: Any) -> tuple[OtherHost, list[dict[str, Any]], list[Failure]]:
        """A second host's link; what it is told; why it gave up."""
        link = OtherHost(self.loop, self.config_of(HOSTS[1], name, **settings))
        told: list[dict[str, Any]] = []
        lost: list[Failure] = []
        link.on_message, link.on_lost = told.append, lost.append
        link.open()
        self._links.append(link)
        return link, told, lost

    def answer_to(self, connection: socket.socket) -> dict[str, Any]:
        answers: list[dict[str, Any]] = []

        def answered() -> bool:
            answers.extend(received(connection))
            return bool(answers)

        self.until(answered, "an answer")
        return answers[0]

    def close(self) -> None:
        for link in self._links:
            link.leave()
        for connection in self._raw:
            connection.close()
        self.first.leave()
        self.loop.close()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    monkeypatch.setattr(control, "LAST_WORDS", 0.1)
    return Loop()


@pytest.fixture
def table(tmp_path: Path, loop: Loop) -> Iterator[Table]:
    table = Table(tmp_path, loop)
    yield table
    table.close()


@pytest.fixture
def impatient(tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    monkeypatch.setattr(door, "HELLO_WITHIN", 0.3)
    table = Table(tmp_path, loop, heartbeat_timeout=1, join_timeout=2)
    yield table
    table.close()


@pytest.fixture(autouse=True)
def _our_log_is_seen() -> Iterator[None]:
    logger = logging.getLogger("moorage")
    before = logger.propagate
    logger.propagate = True
    yield
    logger.propagate = before


def line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def received(connection: socket.socket) -> list[dict[str, Any]]:
    """The messages that have come."""
    try:
        return [json.loads(part) for part in connection.recv(65536).splitlines()]
    except BlockingIOError:
        return []


def is_sent_away(connection: socket.socket) -> bool:
    try:
        return connection.recv(65536) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_both_hosts_hear_the_same(table: Table) -> None:
    link, told, _ = table.other()
    link.on_connected = lambda: link.send({"type": "ready", "fingerprint": "f", "ranks": 2})
    table.first.send({"type": "ready", "fingerprint": "f", "ranks": 2})
    table.until(lambda: told and table.heard, "the start")
    assert told == table.heard and told[0]["type"] == "start"
    link.send({"type": "down", "attempt": 0, "codes": [0, 0], "step": None, "saved": False})
    table.first.send({"type": "down", "attempt": 0, "codes": [0, 0], "step": None, "saved": False})
    table.until(lambda: len(told) == 2, "the leave")
    assert told[1] == table.heard[1] == {"type": "leave", "code": 0, "failure": None, "why": ""}
    link.leave()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
        b"[" * 3000 + b"\n",
        b"null\n",
        b'{"type": 7}\n',
        b'{"type": "stop"}\n',
        b'{"type": "hello"}\n',
        b'{"type": "hello", "host": {}, "instance": [], "token": null}\n',
        b"x" * (LONGEST_HELLO + 1),
    ],
    ids=["http", "tls", "nested", "null", "untyped", "order", "empty", "mistyped", "oversized"],
)
def test_a_stranger_is_sent_away_and_the_job_goes_on(table: Table, data: bytes) -> None:
    stranger = table.raw()
    stranger.sendall(data)
    table.until(lambda: is_sent_away(stranger), "the end of the connection")
    table.other()
    table.until(table.joined, "the join of the second host")


def test_who_says_nothing_or_says_it_slowly_is_sent_away(impatient: Table) -> None:
    silent, slow = impatient.raw(), impatient.raw()
    for byte in impatient.hello()[:10]:
        with contextlib.suppress(BrokenPipeError):  # it is sent away before it comes to an end
            slow.send(bytes([byte]))
        impatient.pause(0.05)
    impatient.until(lambda: is_sent_away(silent) and is_sent_away(slow), "their end")
    assert not impatient.joined()


def test_many_silent_connections_do_not_keep_a_host_out(table: Table) -> None:
    crowd = []
    for _ in range(STRANGERS + 20):
        crowd.append(table.raw())
        table.turn()
    table.until(lambda: sum(map(is_sent_away, crowd[:19])) == 19, "the end of the oldest", timeout=2)
    table.other()
    table.until(table.joined, "the join of the second host")


def test_another_job_is_refused_and_named_in_the_log(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    stranger = table.raw()
    stranger.sendall(table.hello(token=job_token(table.config_of(HOSTS[1], "another"))))
    assert table.answer_to(stranger)["type"] == "refused"
    assert "belongs to another job" in caplog.text
    assert not table.joined()


def test_a_host_of_another_job_gives_up_with_that_reason(table: Table) -> None:
    _, told, lost = table.other("another", join_timeout=1)
    table.until(lambda: lost, "giving up")
    assert "belongs to another job" in lost[0].message and not told


def test_a_name_that_is_no_host_of_the_job_is_refused(table: Table) -> None:
    for name in ("127.0.0.9", HOSTS[0]):
        stranger = table.raw()
        stranger.sendall(table.hello(host=name))
        assert "is not another host of this job" in table.answer_to(stranger)["why"]


def test_a_second_container_of_the_same_name_is_refused(table: Table) -> None:
    first, second = table.raw(), table.raw()
    first.sendall(table.hello(instance="one"))
    table.until(table.joined, "the join")
    second.sendall(table.hello(instance="two"))
    answer = table.answer_to(second)
    assert (answer["type"], answer["again"]) == ("refused", False)
    assert f"another container named {HOSTS[1]} has joined already" in answer["why"]
    assert table.joined()


def test_the_same_container_connecting_anew_replaces_its_old_connection(table: Table) -> None:
    old, new = table.raw(), table.raw()
    old.sendall(table.hello() + line({"type": "ready", "fingerprint": "f", "ranks": 1}))
    table.until(table.joined, "the join")
    new.sendall(table.hello())
    table.until(lambda: is_sent_away(old), "the end of the old one")
    table.first.send({"type": "ready", "fingerprint": "f", "ranks": 1})
    assert not table.heard, "what the old one said does not count"
    new.sendall(line({"type": "ready", "fingerprint": "f", "ranks": 1}))
    table.until(lambda: table.heard, "the start")


def test_a_half_open_connection_is_lost_by_its_silence(impatient: Table) -> None:
    silent = impatient.raw()
    silent.sendall(impatient.hello() + line({"type": "ready", "fingerprint": "f", "ranks": 1}))
    impatient.first.send({"type": "ready", "fingerprint": "f", "ranks": 1})
    impatient.until(lambda: impatient.heard, "the start")
    impatient.until(lambda: len(impatient.heard) > 1, "the end", timeout=3)
    assert impatient.heard[1]["type"] == "end"
    impatient.first.send({"type": "down", "attempt": 0, "codes": [-9], "step": None, "saved": False})
    impatient.until(lambda: len(impatient.heard) > 2, "the verdict")
    assert f"lost the host {HOSTS[1]}: not heard of for" in impatient.heard[2]["failure"]["message"]


@pytest.mark.parametrize("data", [b"garbage\n", b"x" * 70_000, line({"type": "down", "attempt": 0, "codes": "many"})])
def test_a_host_that_talks_nonsense_is_lost_not_believed(table: Table, data: bytes) -> None:
    host = table.raw()
    host.sendall(table.hello() + line({"type": "ready", "fingerprint": "f", "ranks": 1}))
    table.first.send({"type": "ready", "fingerprint": "f", "ranks": 1})
    table.until(lambda: table.heard, "the start")
    host.setblocking(True)
    host.sendall(data)
    table.until(lambda: len(table.heard) > 1, "the end")
    assert table.heard[1]["type"] == "end"


def test_something_else_at_the_first_hosts_port_is_not_obeyed(
    tmp_path: Path, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tmp_path)
    with socket.create_server(("", 0)) as impostor:
        job.write("resourceconfig", {"current_host": HOSTS[1], "hosts": list(HOSTS)})
        job.hyperparameters(moorage_control_port=str(impostor.getsockname()[1]), moorage_join_timeout="1")
        link = OtherHost(loop, job.config())
        told: list[dict[str, Any]] = []
        lost: list[Failure] = []
        link.on_message, link.on_lost = told.append, lost.append
        link.open()
        connection, _ = impostor.accept()
        with connection:
            connection.sendall(line({"type": "stop", "host": "x"}) + line({"type": "welcome", "proof": "guess"}))
            over = time.monotonic() + 5
            loop.run(lambda: bool(lost) or time.monotonic() >= over)
        link.leave()
    assert "belongs to another job; trying again" in caplog.text
    assert lost and "could not be joined within 1 s" in lost[0].message
    assert told == []
    loop.close()


def test_a_first_host_that_ends_is_named(tmp_path: Path, loop: Loop) -> None:
    table = Table(tmp_path, loop)
    link, told, lost = table.other()
    link.on_connected = lambda: link.send({"type": "ready", "fingerprint": "f", "ranks": 2})
    table.first.send({"type": "ready", "fingerprint": "f", "ranks": 2})
    table.until(lambda: told, "the start")
    for wire in table.first._wires.values():
        wire.close()
    table.until(lambda: lost, "the loss")
    assert f"lost the host {HOSTS[0]}: the connection was closed" in lost[0].message
    table.close()
