"""Two hosts on loopback addresses: they start, stop, restart and leave together, and name who is missing or lost."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import HostProcess, JobFolder, Start, free_port, job_settings, loopback_hosts, run_train, starting

WAIT = """
    import os, time
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    print("pid", attempt, os.environ["RANK"], os.getpid(), flush=True)
    time.sleep(600)
"""

ONE_ATTEMPT_WAITS = """
    import os, time
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    names = ["MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "WORLD_SIZE", "RANK"]
    print("pid", attempt, *(os.environ[name] for name in names), os.getpid(), flush=True)
    if attempt == "0":
        time.sleep(600)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    with starting() as begin:
        yield begin


def started(hosts: list[HostProcess], ranks: int, attempt: int = 0) -> None:
    for host in hosts:
        host.wait_for(f"pid {attempt}", times=ranks)


def pid_of(host: HostProcess, rank: int) -> int:
    (line,) = [line for line in host.lines("pid 0") if line.split()[-2] == str(rank)]
    return int(line.split()[-1])


def reports(hosts: list[HostProcess]) -> str:
    return "\n".join(host.report() for host in hosts)


def test_a_job_on_two_hosts_finishes_on_both(tmp_path: Path) -> None:
    program = """
        import os
        names = ["RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "SM_CURRENT_HOST"]
        print("ran", *(os.environ[name] for name in names))
    """
    with run_train(tmp_path, program, hosts=2, ranks=2) as hosts:
        assert [host.ends() for host in hosts] == [0, 0], reports(hosts)
    assert sorted(line for host in hosts for line in host.lines("ran")) == [
        "[127.0.0.1:1] ran 1 1 0 4 127.0.0.1 127.0.0.1",
        "[127.0.0.2:2] ran 2 0 1 4 127.0.0.1 127.0.0.2",
        "[127.0.0.2:3] ran 3 1 1 4 127.0.0.1 127.0.0.2",
        "ran 0 0 0 4 127.0.0.1 127.0.0.1",
    ]


def test_hosts_leave_together(tmp_path: Path) -> None:
    program = """
        import os, time
        if os.environ["GROUP_RANK"] == "0":
            time.sleep(1.5)
    """
    with run_train(tmp_path, program, hosts=2) as hosts:
        assert [host.ends() for host in hosts] == [0, 0]
    times = [{event["event"]: event["time"] for event in host.folder.ledger()} for host in hosts]
    assert times[1]["leave"] - times[1]["down"] > 1, "the second waits for the first"
    assert abs(times[0]["leave"] - times[1]["leave"]) < 0.5


@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_of_one_host_stops_both(tmp_path: Path, asked: int) -> None:
    program = """
        import os, signal, sys, time
        def stop(*_):
            print("saved", os.environ["RANK"], flush=True)
            sys.exit(143)
        signal.signal(signal.SIGTERM, stop)
        print("pid 0", flush=True)
        time.sleep(600)
    """
    with run_train(tmp_path, program, hosts=2, ranks=2) as hosts:
        started(hosts, 2)
        hosts[asked].signal()
        assert [host.ends(10) for host in hosts] == [143, 143], reports(hosts)
    assert sum(len(host.lines("saved")) for host in hosts) == 4
    assert [host.failure for host in hosts] == [None, None]


@pytest.mark.parametrize("victim", range(4))
def test_a_killed_rank_restarts_the_ranks_of_both_hosts(tmp_path: Path, victim: int) -> None:
    with run_train(tmp_path, ONE_ATTEMPT_WAITS, hosts=2, ranks=2) as hosts:
        started(hosts, 2)
        os.kill(pid_of(hosts[victim // 2], victim), signal.SIGKILL)
        assert [host.ends() for host in hosts] == [0, 0], reports(hosts)
    for attempt in (0, 1):
        lines = [line.split() for host in hosts for line in host.lines(f"pid {attempt}")]
        assert {words[-2] for words in lines} == {"0", "1", "2", "3"}
        assert len({(words[-6], words[-5]) for words in lines}) == 1, "all meet at one place"
    assert len({line.split()[-5] for host in hosts for line in host.lines("pid")}) == 2, "a fresh port"


def test_one_root_cause_for_all_hosts(tmp_path: Path) -> None:
    # Rank 0 fails first, but only because rank 3 went away.
    program = """
        import os, time
        if os.environ["RANK"] == "0":
            raise RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.2]:4711")
        if os.environ["RANK"] == "3":
            time.sleep(0.7)
            raise ValueError("label 11 is out of range")
        time.sleep(600)
    """
    with run_train(tmp_path, program, hosts=2, ranks=2) as hosts:
        assert [host.ends() for host in hosts] == [1, 1], reports(hosts)
    assert hosts[0].failure == hosts[1].failure
    assert hosts[0].failure is not None
    assert hosts[0].failure.startswith(
        "rank 3 on 127.0.0.2 failed with exit code 1: ValueError: label 11 is out of range"
    )


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_is_named_by_the_other(tmp_path: Path, lost: int) -> None:
    with run_train(tmp_path, WAIT, hosts=2, ranks=2) as hosts:
        started(hosts, 2)
        hosts[lost].process.kill()
        assert hosts[1 - lost].ends(15) == 69
    assert f"lost the host 127.0.0.{lost + 1}" in (hosts[1 - lost].failure or "")


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_silent_host_is_lost(tmp_path: Path, frozen: int) -> None:
    with run_train(tmp_path, WAIT, hosts=2, heartbeat_timeout=1.5) as hosts:
        started(hosts, 1)
        hosts[frozen].signal(signal.SIGSTOP)
        try:
            assert hosts[1 - frozen].ends(15) == 69
        finally:
            hosts[frozen].signal(signal.SIGCONT)
        assert f"lost the host 127.0.0.{frozen + 1}: not heard of for" in (hosts[1 - frozen].failure or "")
        hosts[frozen].ends(15)


@pytest.mark.parametrize("absent", [0, 1])
def test_a_host_that_never_comes_is_named(tmp_path: Path, start: Start, absent: int) -> None:
    names = loopback_hosts(2)
    there = JobFolder(tmp_path, hosts=names, host=names[1 - absent])
    there.code(train="print('started')")
    host = start(there, env=job_settings(join_timeout=1.5))
    assert host.ends(10) == 69
    assert host.failure is not None and not host.lines("started")
    if absent == 1:
        assert host.failure.startswith("127.0.0.1: 127.0.0.2 did not join within 2 s. 1 of 2 hosts")
    else:
        assert "127.0.0.1 could not be joined within 2 s" in host.failure


def test_hosts_with_different_code_are_both_named(tmp_path: Path, start: Start) -> None:
    names = loopback_hosts(2)
    settings = job_settings()
    hosts = []
    for number, name in enumerate(names):
        folder = JobFolder(tmp_path / name, hosts=names, host=name)
        folder.code(train=f"print('started', {number})")
        hosts.append(start(folder, env=settings))
    assert [host.ends(10) for host in hosts] == [69, 69], reports(hosts)
    for host in hosts:
        assert host.failure is not None and "127.0.0.1 and 127.0.0.2 have different code" in host.failure
        assert not host.lines("started")


def test_a_failure_while_preparing_ends_all_hosts_for_that_reason(tmp_path: Path, start: Start) -> None:
    names = loopback_hosts(2)
    settings = job_settings()
    hosts = []
    for name, text in zip(names, ("print('started')", "def broken("), strict=True):
        folder = JobFolder(tmp_path / name, hosts=names, host=name)
        folder.code(train=text)
        hosts.append(start(folder, env=settings))
    assert [host.ends(10) for host in hosts] == [66, 66], reports(hosts)
    assert hosts[0].failure == hosts[1].failure
    assert hosts[0].failure is not None and hosts[0].failure.startswith(
        "127.0.0.2: the program train.py has a syntax error"
    )


def test_two_containers_named_alike_are_told_apart(tmp_path: Path, start: Start) -> None:
    names = loopback_hosts(3)
    settings = job_settings()
    hosts = []
    for number, name in enumerate((names[0], names[1], names[1])):
        folder = JobFolder(tmp_path / str(number), hosts=names, host=name)
        folder.code(train="print('started')")
        hosts.append(start(folder, env=settings))
        hosts[-1].wait_for("join" if number else "moorage: program")
    assert hosts[2].ends(10) == 69
    assert hosts[2].failure is not None and "another container named 127.0.0.2 has joined already" in hosts[2].failure
    assert [host.process.poll() for host in hosts[:2]] == [None, None], "the others still wait for the third"
    hosts[1].signal()
    assert [host.ends(10) for host in hosts[:2]] == [143, 143]


def test_a_stop_while_waiting_for_the_other_host(tmp_path: Path, start: Start) -> None:
    names = loopback_hosts(2)
    for present in names:
        folder = JobFolder(tmp_path / present, hosts=names, host=present)
        folder.code(train="print('started')")
        host = start(folder, env=job_settings())
        host.wait_for("moorage: program")
        host.signal()
        assert host.ends(5) == 143, host.report()
        assert host.failure is None


def test_a_taken_control_port_is_said(tmp_path: Path) -> None:
    port = free_port()
    with (
        socket.create_server(("", port)),
        run_train(tmp_path, "pass", hosts=2, control_port=port, join_timeout=2) as hosts,
    ):
        assert hosts[0].ends(10) == 78
        assert hosts[0].failure is not None and f"cannot listen on port {port}" in hosts[0].failure
        assert hosts[1].ends(15) == 69
