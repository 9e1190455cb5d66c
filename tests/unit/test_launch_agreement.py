"""What the hosts agree on, message by message."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from moorage.contract.failure import Failure
from moorage.contract.settings import Settings
from moorage.launch.agreement import END_LIMIT, LINGER, REJOIN, WINDOW, Agreement, Send
from moorage.launch.restart import decide

HOSTS = ("a", "b")


def agreement(**settings: Any) -> Agreement:
    ports = itertools.count(5000)
    return Agreement(hosts=HOSTS, settings=Settings(**settings), pick_port=lambda: next(ports), started=0.0)


def running(**settings: Any) -> Agreement:
    agreed = agreement(**settings)
    for host in HOSTS:
        agreed.joined(host, 0.0)
    for host in HOSTS:
        agreed.heard(host, ready(), 0.0)
    return agreed


def ready(fingerprint: str = "f") -> dict[str, Any]:
    return {"type": "ready", "fingerprint": fingerprint, "ranks": 2}


def failed(rank: int | None = 3, attempt: int | None = 0, **fields: Any) -> dict[str, Any]:
    failure = Failure(**{"host": "b", "rank": rank, "code": 1, "message": "E", "time": 1.0, **fields})
    return {"type": "failed", "attempt": attempt, "failure": failure.to_json()}


def down(*codes: int, attempt: int = 0, step: int | None = None, saved: bool = False) -> dict[str, Any]:
    return {"type": "down", "attempt": attempt, "codes": list(codes), "step": step, "saved": saved}


def told(sends: list[Send]) -> list[tuple[str, str]]:
    return [(host, message["type"]) for host, message in sends]


def everyone(kind: str) -> list[tuple[str, str]]:
    return [(host, kind) for host in HOSTS]


def verdict(sends: list[Send]) -> tuple[int, str]:
    """The exit code, and the message of the root cause."""
    assert told(sends)[-2:] == everyone("leave")
    message = sends[-1][1]
    return message["code"], (message["failure"] or {"message": ""})["message"]


def test_the_start_waits_for_all_and_is_the_same_for_all() -> None:
    agreed = agreement()
    assert agreed.joined("a", 0.0) == agreed.heard("a", ready(), 0.0) == agreed.joined("b", 1.0) == []
    sends = agreed.heard("b", ready(), 2.0)
    start = {"type": "start", "attempt": 0, "launch": 1, "port": 5000, "ranks": {"a": 2, "b": 2}}
    assert sends == [("a", start), ("b", start)]


def test_all_leave_when_all_finished() -> None:
    agreed = running()
    assert agreed.heard("a", down(0, 0), 1.0) == []
    assert verdict(agreed.heard("b", down(0, 0), 2.0)) == (0, "")


def test_a_failure_ends_all_and_everybody_is_down_before_anybody_starts() -> None:
    agreed = running()
    assert told(agreed.heard("b", failed(signal=9, code=137), 1.0)) == everyone("end")
    assert agreed.heard("b", down(-9, -9), 1.1) == []
    sends = agreed.heard("a", down(-9, -9), 1.2)
    assert told(sends) == [*everyone("failed"), *everyone("start")]
    assert (sends[-1][1]["attempt"], sends[-1][1]["port"]) == (1, 5001)


def test_what_is_left_over_from_an_attempt_says_nothing_of_the_next() -> None:
    agreed = running()
    agreed.heard("b", failed(signal=9, code=137), 1.0)
    for host in HOSTS:
        agreed.heard(host, down(-9, -9), 1.1)
    assert agreed.heard("b", failed(attempt=0), 1.2) == agreed.heard("b", down(-9, -9, attempt=0), 1.2) == []
    assert agreed.heard("a", down(0, 0, attempt=1), 2.0) == []
    assert verdict(agreed.heard("b", down(0, 0, attempt=1), 2.0)) == (0, "")


def test_an_effect_waits_for_its_cause() -> None:
    agreed = running(max_restarts=0)
    assert agreed.heard("a", failed(rank=0, host="a", message="closed by peer", consequence=True), 1.0) == []
    assert agreed.wake_at == 1.0 + WINDOW
    assert told(agreed.heard("b", failed(message="the cause", time=9.0), 2.0)) == everyone("end")
    agreed.heard("a", down(1, -9), 2.1)
    assert verdict(agreed.heard("b", down(-9, 1), 2.1)) == (1, "the cause")


def test_an_effect_without_a_cause_is_believed() -> None:
    agreed = running()
    agreed.heard("a", failed(rank=0, message="closed by peer", consequence=True), 1.0)
    assert agreed.tick(1.0 + WINDOW - 0.1) == []
    assert told(agreed.tick(1.0 + WINDOW)) == everyone("end")
    agreed.heard("a", down(1, -9), 3.1)
    assert verdict(agreed.heard("b", down(-9, -9), 3.1)) == (1, "closed by peer")


def test_the_earliest_of_two_causes() -> None:
    agreed = running()
    agreed.heard("b", failed(message="second", time=2.0), 1.0)
    agreed.heard("a", failed(rank=1, message="first", time=1.0, code=5), 1.1)
    agreed.heard("a", down(-9, 5), 1.2)
    assert verdict(agreed.heard("b", down(-9, 1), 1.2)) == (5, "first")


def test_the_last_rank_that_fails_does_not_wait_for_the_window() -> None:
    agreed = running()
    agreed.heard("b", down(0, 0), 1.0)
    agreed.heard("a", failed(consequence=True), 1.0)
    assert verdict(agreed.heard("a", down(1, 0), 1.0))[0] == 1


def test_a_stop_is_asked_of_all_and_every_state_saved_is_143() -> None:
    agreed = running()
    assert told(agreed.heard("b", {"type": "stop"}, 1.0)) == everyone("stop")
    assert agreed.heard("a", {"type": "stop"}, 1.1) == [], "once"
    agreed.heard("a", down(143, 143), 2.0)
    assert verdict(agreed.heard("b", down(143, -15), 2.0)) == (143, "")


@pytest.mark.parametrize(
    ("codes", "failures", "expected"),
    [
        ((0, 0, 0, 0), [], 0),
        ((0, 0, 143, 143), [], 143),
        ((143, 143, 3, 143), [{"code": 3}], 3),
        ((143, 143, 1, 143), [{"code": 1, "consequence": True}], 143),
        ((1, 1, 1, 1), [{"code": 1, "consequence": True}], 1),
        ((-9, 143, 143, 143), [{"code": 137, "rank": None}], 137),
    ],
)
def test_the_exit_code_of_a_stopped_job(codes: tuple[int, ...], failures: list[dict[str, Any]], expected: int) -> None:
    agreed = running()
    agreed.heard("a", {"type": "stop"}, 1.0)
    for fields in failures:
        agreed.heard("b", failed(**fields), 1.5)
    agreed.heard("a", down(*codes[:2]), 2.0)
    assert verdict(agreed.heard("b", down(*codes[2:]), 2.0))[0] == expected


def test_a_stop_between_attempts_ends_the_job_where_a_restart_would_have_come() -> None:
    agreed = running()
    agreed.heard("b", failed(signal=9, code=137), 1.0)
    assert agreed.heard("a", {"type": "stop"}, 1.1) == []
    agreed.heard("a", down(-9, -9), 1.2)
    assert verdict(agreed.heard("b", down(-9, -9), 1.2)) == (143, "")


def test_a_stop_before_the_start() -> None:
    agreed = agreement()
    agreed.joined("a", 0.0)
    assert told(agreed.heard("a", {"type": "stop"}, 1.0)) == [("a", "leave")]
    assert [message["code"] for _, message in agreed.joined("b", 5.0)] == [143], "who comes late hears of it"


def test_a_stop_that_hangs_is_ended_shortly_after_the_grace() -> None:
    agreed = running(grace=10.0)
    agreed.heard("a", {"type": "stop"}, 1.0)
    agreed.heard("a", down(143, 143), 2.0)
    assert agreed.wake_at is not None and 11.0 < agreed.wake_at < 20.0
    assert verdict(agreed.tick(agreed.wake_at))[0] == 69


def test_a_host_that_never_came_is_named() -> None:
    agreed = agreement(join_timeout=30.0)
    agreed.joined("a", 0.0)
    assert agreed.tick(29.9) == []
    sends = agreed.tick(30.0)
    assert told(sends) == [("a", "leave")]
    assert sends[0][1]["failure"]["message"].startswith("b did not join within 30 s. 1 of 2 hosts")
    assert "current_host in resourceconfig.json must be that name" in sends[0][1]["failure"]["message"]


def test_the_time_to_join_is_over_when_all_are_here_however_long_they_prepare() -> None:
    agreed = agreement(join_timeout=30.0)
    for host in HOSTS:
        agreed.joined(host, 0.0)
    assert agreed.wake_at is None


def test_a_failure_while_preparing_waits_a_little_for_who_is_still_to_come() -> None:
    agreed = agreement()
    agreed.joined("a", 0.0)
    assert agreed.heard("a", failed(rank=None, attempt=None, code=65, message="pip failed"), 10.0) == []
    assert agreed.wake_at == 10.0 + LINGER
    assert verdict(agreed.joined("b", 12.0)) == (65, "pip failed")


def test_different_code_is_an_error_that_names_both() -> None:
    agreed = agreement()
    for host in HOSTS:
        agreed.joined(host, 0.0)
    agreed.heard("a", ready("abc"), 0.0)
    code, message = verdict(agreed.heard("b", ready("xyz"), 0.0))
    assert code == 69
    assert all(word in message for word in ("a and b", "abc on a", "xyz on b"))


def test_a_host_that_loses_its_connection_before_the_start_may_come_back() -> None:
    agreed = agreement()
    for host in HOSTS:
        agreed.joined(host, 0.0)
    agreed.heard("b", ready(), 0.0)
    agreed.disconnected("b", "reset", 1.0)
    assert agreed.heard("a", ready(), 1.5) == [], "b has to say again that it is ready"
    agreed.joined("b", 2.0)
    assert told(agreed.heard("b", ready(), 2.0)) == everyone("start")


def test_a_host_that_does_not_come_back_is_lost() -> None:
    agreed = agreement()
    for host in HOSTS:
        agreed.joined(host, 0.0)
    agreed.disconnected("b", "reset", 1.0)
    assert agreed.wake_at == 1.0 + REJOIN
    sends = agreed.tick(1.0 + REJOIN)
    assert told(sends) == [("a", "leave")] and "lost the host b" in sends[0][1]["failure"]["message"]


def test_a_host_lost_after_the_start_ends_the_job() -> None:
    agreed = running()
    agreed.heard("a", failed(rank=0, message="closed by peer", consequence=True, time=time.time()), 1.0)
    assert told(agreed.disconnected("b", "reset", 1.5)) == [("a", "end")]
    sends = agreed.heard("a", down(1, -9), 1.6)
    assert told(sends) == [("a", "leave")]
    assert sends[0][1]["code"] == 69 and "lost the host b: reset" in sends[0][1]["failure"]["message"]


def test_no_restart_without_all_hosts() -> None:
    agreed = running()
    agreed.heard("a", failed(rank=0, signal=9, code=137, time=1.0), 1.0)
    agreed.heard("a", down(-9, -9, step=100), 1.1)
    assert told(agreed.disconnected("b", "reset", 1.2)) == [("a", "leave")]


def test_a_host_lost_after_it_saved_does_not_spoil_a_stop() -> None:
    agreed = running()
    agreed.heard("a", {"type": "stop"}, 1.0)
    agreed.heard("b", down(143, 143), 2.0)
    agreed.disconnected("b", "reset", 2.1)
    sends = agreed.heard("a", down(143, 143), 3.0)
    assert told(sends) == [("a", "leave")] and sends[0][1]["code"] == 143


def test_ranks_that_do_not_die_do_not_hold_the_job() -> None:
    agreed = running()
    agreed.heard("a", failed(message="E"), 1.0)
    agreed.heard("a", down(1, -9), 1.0)
    assert verdict(agreed.tick(1.0 + END_LIMIT)) == (1, "E")


@pytest.mark.parametrize(
    "message",
    [{"type": "ready"}, {"type": "down", "attempt": 0}, {"type": "failed", "attempt": 0, "failure": {"x": 1}}],
)
def test_a_message_without_sense_is_an_error_to_its_sender(message: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        running().heard("b", message, 1.0)


def steps(*reached: int | None) -> Callable[[Agreement], int]:
    """Let every attempt fail by itself after these steps; how many attempts there were."""

    def play(agreed: Agreement) -> int:
        for attempt, step in enumerate(reached):
            agreed.heard("b", failed(attempt=attempt), 1.0)
            agreed.heard("a", down(-9, -9, attempt=attempt, step=step), 1.0)
            sends = agreed.heard("b", down(-9, 1, attempt=attempt, step=None), 1.0)
            if told(sends)[-2:] == everyone("leave"):
                return attempt + 1
        return len(reached) + 1

    return play


@pytest.mark.parametrize(
    ("reached", "attempts"),
    [
        ((0,), 1),
        ((5, 5, 5, 5), 3),
        ((5, 6, 6, 6, 6), 4),
        ((5, 3, 5, 3, 5, 9), 5),
        ((5, 3, 3, 9, 3, 9, 9, 9), 7),  # coming further wipes the slate
        ((5, 6, 7, 8), 5),
        ((5, 0), 2),
    ],
)
def test_a_step_that_failed_three_times_is_not_tried_again(reached: tuple[int, ...], attempts: int) -> None:
    assert steps(*reached)(running(max_restarts=9)) == attempts


def test_restarts_are_used_up_whatever_the_steps() -> None:
    assert steps(5, 6, 7, 8, 9)(running(max_restarts=3)) == 4
    assert steps(5, 5)(running(max_restarts=0)) == 1


def test_the_step_that_failed_is_that_of_the_rank_at_fault() -> None:
    agreed = running(max_restarts=9)
    for attempt, peer in enumerate((6, 5, 6)):  # another rank was a step ahead, or not
        agreed.heard("b", failed(attempt=attempt, step=5), 1.0)
        agreed.heard("a", down(-9, -9, attempt=attempt, step=peer), 1.0)
        sends = agreed.heard("b", down(-9, 1, attempt=attempt, step=5), 1.0)
    assert "step 6 failed in 3 attempts" in sends[-1][1]["why"]


def test_the_cause_of_a_step_that_fails_for_ever_says_so() -> None:
    agreed = running(max_restarts=9)
    assert steps(5, 5)(agreed) == 3  # it is asked for a third
    agreed.heard("b", failed(attempt=2, message="ValueError: no such token"), 1.0)
    agreed.heard("a", down(-9, -9, attempt=2, step=4), 1.0)
    sends = agreed.heard("b", down(-9, 1, attempt=2, step=5), 1.0)
    assert told(sends) == [*everyone("failed"), *everyone("leave")]
    assert sends[0][1] == {"type": "failed", "attempt": 2, "step": 5}
    text = Failure.from_json(sends[-1][1]["failure"]).text()
    assert text.startswith("rank 3 on b failed with exit code 1: ValueError: no such token\n")
    assert "There is no other attempt: step 6 failed in 3 attempts, so it would fail again." in text


@pytest.mark.parametrize(
    ("fields", "made", "progressed", "again"),
    [
        ({"signal": 9}, 0, False, True),
        ({"signal": 9}, 1, False, True),
        ({"signal": 11}, 2, True, True),
        ({"signal": 9}, 3, True, False),
        ({}, 0, False, False),
        ({}, 0, True, True),
        ({"message": "bind: EADDRINUSE"}, 0, False, True),
        ({"rank": None}, 0, True, False),
    ],
)
def test_when_to_try_again(fields: dict[str, Any], made: int, progressed: bool, again: bool) -> None:
    failure = Failure(**{"host": "a", "rank": 0, "code": 1, "message": "E", **fields})
    assert decide(failure, made=made, most=3, progressed=progressed).again is again
