"""Which request goes where, and what becomes of it, by a clock of the test's own."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import pytest

from moorage.serving import wire
from moorage.serving.arena import Arena
from moorage.serving.dispatch import Channel, Dispatcher, Pending, Reject


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float, call: Callable[[], None]) -> object:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), call))
        return object()

    def passes(self, seconds: float) -> None:
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            self.now, _, call = heapq.heappop(self._due)
            call()
        self.now = until


class Client:
    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, answer: wire.AnswerFrame) -> None:
        self.told.append(f"{answer.status}{'' if answer.flags & wire.LAST else ' begins'}")

    def chunk(self, flags: int, data: bytes) -> None:
        self.told.append(f"{'broken ' * bool(flags & wire.BROKEN)}{data.decode()}")

    def fail(self, reject: Reject) -> None:
        self.told.append(f"{reject.status} {reject.reason}")


class Model:
    """A model process's side of a channel: what it was sent, and what it says."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.sent: list[memoryview] = []
        self.channel = Channel(lambda frame: self.sent.append(memoryview(frame)))
        self._dispatcher = dispatcher
        dispatcher.join(self.channel)

    @property
    def requests(self) -> list[wire.RequestFrame]:
        return [wire.unpack_request(frame) for frame in self.sent if wire.kind_of(frame) == wire.REQUEST]

    @property
    def bodies(self) -> list[str]:
        return [bytes(request.body).decode() for request in self.requests]

    @property
    def cancelled(self) -> list[int]:
        return [wire.number_of(frame) for frame in self.sent if wire.kind_of(frame) == wire.CANCEL]

    def says(self, frame: bytes) -> None:
        self._dispatcher.heard(self.channel, memoryview(frame))
        self._dispatcher.settled()

    def answers(self, number: int, *, took: float = 0.01, last: bool = True, batch: int = 1) -> None:
        flags, microseconds = (wire.LAST if last else 0), int(took * 1e6)
        self.says(
            wire.pack_answer(
                number, flags=flags, status=200, batch_size=batch, microseconds=microseconds, head=b"a\0b", length=0,
                piece=0,
            )
        )  # fmt: skip


def dispatcher(clock: Clock, *, batch: int = 1, delay: float = 0.0, queue: int = 4) -> Dispatcher:
    return Dispatcher(max_batch_size=batch, max_queue_delay=delay, max_queue=queue, clock=clock, later=clock.later)


def sends(found: Dispatcher, clock: Clock, body: str, seconds: float = 10) -> tuple[Client, Pending]:
    client = Client()
    pending = Pending(
        sink=client, head=b"id\0\0\0", body=body.encode(), slot=None, arrived=clock(), deadline=clock() + seconds
    )
    found.submit(pending)
    return client, pending


def test_a_slow_model_has_one_at_a_time_and_a_fast_one_many() -> None:
    clock = Clock()
    found = dispatcher(clock, queue=100)
    model = Model(found)
    for number in range(60):
        sends(found, clock, str(number))
    assert model.bodies == ["0"]
    model.answers(1, took=0.05)
    assert model.bodies == ["0", "1"]
    for number in range(2, 50):
        model.answers(number, took=0.00001)
    # 0.05 s weighs a tenth less with each that takes 10 us: it comes to less than 0.0005 s, and two may lie ready.
    assert len(model.requests) > 50 and [request.number for request in model.requests] == list(
        range(1, len(model.requests) + 1)
    )


def test_the_queue_is_bounded_and_forgets_those_who_left() -> None:
    clock = Clock()
    found = dispatcher(clock, queue=2)
    Model(found)
    sends(found, clock, "given")
    _, second = sends(found, clock, "a")
    sends(found, clock, "b")
    with pytest.raises(Reject) as full:
        sends(found, clock, "c")
    assert (full.value.status, full.value.retry_after) == (503, 1)
    found.leave(second)
    sends(found, clock, "c")
    assert found.queued == 2


def test_a_batch_waits_for_others_but_not_for_long() -> None:
    clock = Clock()
    found = dispatcher(clock, batch=3, delay=0.005)
    model = Model(found)
    sends(found, clock, "a")
    clock.passes(0.004)
    sends(found, clock, "b")
    assert model.bodies == []
    clock.passes(0.0011)
    assert model.bodies == ["a", "b"] and [request.is_last for request in model.requests] == [False, True]
    for body in "cdef":
        sends(found, clock, body)
    model.answers(1, batch=2)
    model.answers(2, batch=2)
    assert model.bodies == ["a", "b", "c", "d", "e"]


def test_the_least_loaded_process_is_next() -> None:
    clock = Clock()
    found = dispatcher(clock)
    first, second = Model(found), Model(found)
    for body in "abc":
        sends(found, clock, body)
    second.answers(2)
    assert (first.bodies, second.bodies) == (["a"], ["b", "c"])


def test_a_deadline_is_told_once_and_what_was_not_begun_is_cancelled() -> None:
    clock = Clock()
    found = dispatcher(clock)
    model = Model(found)
    (given, _), (queued, _) = sends(found, clock, "a", 10), sends(found, clock, "b", 10)
    clock.passes(10)
    assert given.told == queued.told == ["504 deadline"]
    assert model.cancelled == [1] and not found.queued
    model.answers(1)
    model.says(wire.pack_dropped(1)) if 1 in model.channel.given else None
    assert given.told == ["504 deadline"] and found.idle
    third, _ = sends(found, clock, "c")
    model.answers(2)
    assert third.told == ["200"]


def test_of_a_process_that_dies_only_what_it_had_begun_fails() -> None:
    clock = Clock()
    found = dispatcher(clock, queue=100)
    model = Model(found)
    model.channel.seconds = 0.0001
    clients = [sends(found, clock, body)[0] for body in "abcd"]
    assert model.bodies == ["a", "b", "c", "d"]
    model.answers(1)
    gone = Reject(503, "it ended", reason="lost", retry_after=1)
    assert found.lost(model.channel, begun=2, reject=gone) == (1, 2)
    assert [client.told for client in clients] == [["200"], ["503 lost"], [], []]
    another = Model(found)
    assert another.bodies == ["c"]
    another.answers(another.requests[-1].number)
    assert another.bodies == ["c", "d"] and clients[2].told == ["200"]


def test_a_stream_is_no_obstacle_and_breaks_with_its_process() -> None:
    clock = Clock()
    found = dispatcher(clock)
    model = Model(found)
    stream, pending = sends(found, clock, "a", 10)
    model.answers(1, last=False)
    model.says(wire.pack_chunk(1, flags=0, piece=2) + b"xy")
    sends(found, clock, "b", 100)
    assert model.bodies == ["a", "b"]
    clock.passes(11)  # an answer that has begun goes on
    assert stream.told == ["200 begins", "xy"]
    found.credit(pending, 5)
    assert wire.unpack_credit(model.sent[-1]) == (1, 5)
    found.lost(model.channel, begun=1, reject=Reject(503, "", reason="lost"))
    assert stream.told == ["200 begins", "xy", "503 lost"]


def test_the_room_of_a_body_is_free_when_nobody_reads_it_any_more() -> None:
    clock = Clock()
    found, arena = dispatcher(clock), Arena(1 << 20)
    model = Model(found)
    slots = [arena.slot(5000) for _ in range(2)]
    pendings = [
        Pending(sink=Client(), head=b"", body=b"", slot=slot, arrived=clock(), deadline=clock() + 9) for slot in slots
    ]
    for pending in pendings:
        found.submit(pending)
    used = arena.used
    for pending in pendings:
        found.leave(pending)
    assert arena.used == used // 2, "the model process may be reading the first"
    model.says(wire.pack_dropped(1))
    assert arena.used == 0 and found.idle
