"""The wait for the hosts' names: real look-ups of loopback names, and resolvers that lag, fail or block."""

from __future__ import annotations

import logging
import socket
import threading
import time

import pytest

from moorage.cluster import wait_for_hosts
from moorage.errors import ClusterError


def refused(host: str) -> socket.gaierror:
    return socket.gaierror(socket.EAI_NONAME, f"Name or service not known: {host}")


def test_names_that_resolve_are_waited_for_no_longer_than_the_look_up() -> None:
    started = time.monotonic()
    assert wait_for_hosts(["localhost", "127.0.0.1", "127.0.0.2"], started + 30)
    assert time.monotonic() - started < 5


def test_a_name_that_comes_late_is_found() -> None:
    tries = {"algo-1": 0, "algo-2": 0}

    def lagging(host: str, _port: None) -> list[object]:
        tries[host] += 1
        if host == "algo-2" and tries[host] < 3:
            raise refused(host)
        return []

    assert wait_for_hosts(["algo-1", "algo-2"], time.monotonic() + 30, lagging)
    assert tries == {"algo-1": 1, "algo-2": 3}


def test_the_error_names_the_missing_hosts_only() -> None:
    def resolve(host: str, _port: None) -> list[object]:
        if host == "algo-1":
            return []
        raise refused(host)

    with pytest.raises(ClusterError) as caught:
        wait_for_hosts(["algo-1", "algo-2", "algo-3"], time.monotonic() + 0.4, resolve)
    assert "no address for algo-2, algo-3" in str(caught.value)
    assert "Name or service not known" in caught.value.why
    assert "MOORAGE_JOIN_TIMEOUT" in caught.value.fix


def test_the_deadline_holds_while_the_resolver_blocks() -> None:
    release = threading.Event()

    def silent(host: str, _port: None) -> list[object]:
        release.wait(60)
        raise refused(host)

    started = time.monotonic()
    with pytest.raises(ClusterError, match="algo-2") as caught:
        wait_for_hosts(["algo-2"], started + 0.3, silent)
    release.set()
    assert time.monotonic() - started < 5
    assert "did not answer" in caught.value.why


def test_a_stop_ends_the_wait() -> None:
    asked = threading.Event()

    def resolve(host: str, _port: None) -> list[object]:
        asked.set()
        raise refused(host)

    assert not wait_for_hosts(["algo-2"], time.monotonic() + 60, resolve, stopped=asked.is_set)


def test_the_wait_says_whom_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    def resolve(host: str, _port: None) -> list[object]:
        raise refused(host)

    with caplog.at_level(logging.INFO, logger="moorage"), pytest.raises(ClusterError):
        wait_for_hosts([f"algo-{n}" for n in range(12)], time.monotonic() + 0.5, resolve, progress_every=0.2)
    assert "algo-0" in caplog.text
    assert "and 4 more" in caplog.text


def test_a_name_that_no_resolver_takes_is_an_error_not_a_crash() -> None:
    with pytest.raises(ClusterError, match="no address for"):
        wait_for_hosts(["a" * 70 + ".example"], time.monotonic() + 0.5)
