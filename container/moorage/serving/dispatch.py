"""Which request goes to which model process, when, in which batch; and what becomes of those whose process died.

It knows no sockets: model processes are `Channel`s, and the clock is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from moorage.serving import wire
from moorage.serving.arena import Slot

AHEAD = 0.001
"""Seconds of work that lie ready in the socket of a model process, so that it never waits for the front. What lies
there can neither join a later batch nor go to another process: a slow model is given one batch at a time."""

MOST_AHEAD = 64
_SMOOTHING = 0.1


class Reject(Exception):
    """A request that no model will see. reason: for the metrics. retry_after: seconds, None where it is of no use."""

    def __init__(self, status: int, message: str, *, reason: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.reason, self.retry_after = status, message, reason, retry_after


class Sink(Protocol):
    """Who waits for an answer. Each is called at most once per frame, and nothing after `fail`."""

    def begin(self, answer: wire.AnswerFrame) -> None: ...
    def chunk(self, flags: int, data: bytes) -> None: ...
    def fail(self, reject: Reject) -> None: ...


@dataclass(eq=False, slots=True)
class Pending:
    """A request that was accepted. head, body: as `wire.pack_request` takes them; slot: where a long body lies.

    arrived, deadline, sent: by the clock; sent is 0 until a model process has it. over: nobody waits for it any more.
    """

    sink: Sink
    head: bytes
    body: bytes
    slot: Slot | None
    arrived: float
    deadline: float
    number: int = 0
    sent: float = 0.0
    begun: bool = False
    """Its answer has begun."""
    over: bool = False

    def frame(self, number: int, *, last: bool) -> bytes:
        self.number = number
        if self.slot is None:
            return wire.pack_request(number, last=last, deadline=self.deadline, head=self.head, body=self.body)
        return wire.pack_request(
            number, last=last, deadline=self.deadline, head=self.head, body=b"", offset=self.slot.offset,
            length=self.slot.size,
        )  # fmt: skip

    def release(self) -> None:
        """Its body is read by nobody any more."""
        if self.slot is not None:
            self.slot.free()
            self.slot = None


@dataclass(eq=False)
class Channel:
    """The way to a model process that is ready. write: takes frames. given: what it has, by number, oldest first.

    seconds: that one request took it of late, in the mean; 0 where that is not known. streams: of those given, the ones
    whose answers have begun: such a process takes the next request, which it begins when no client waits for more.
    """

    write: Callable[[bytes], None]
    given: dict[int, Pending] = field(default_factory=dict)
    seconds: float = 0.0
    streams: int = 0

    def room(self, batch_size: int) -> bool:
        """Whether one more batch may lie ready for it."""
        batch_seconds = self.seconds * batch_size
        ahead = min(MOST_AHEAD, 1 + int(AHEAD / batch_seconds)) if batch_seconds else 1
        return len(self.given) - self.streams < ahead * batch_size

    def took(self, microseconds: int, batch_size: int) -> None:
        one = microseconds / 1e6 / batch_size
        self.seconds += (one - self.seconds) * (_SMOOTHING if self.seconds else 1.0)


class Dispatcher:
    """later: runs a function after so many seconds, and gives what has `cancel`."""

    def __init__(
        self,
        *,
        max_batch_size: int,
        max_queue_delay: float,
        max_queue: int,
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        self._batch, self._delay, self._most = max_batch_size, max_queue_delay, max_queue
        self._clock, self._later = clock, later
        self._queue: deque[Pending] = deque()
        self._channels: list[Channel] = []
        self._deadlines: deque[Pending] = deque()
        self._number = 0
        self._alarm: Any = None
        self._sweep: Any = None

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def given(self) -> int:
        """Requests that model processes have."""
        return sum(len(channel.given) for channel in self._channels)

    @property
    def idle(self) -> bool:
        return not self._queue and not self.given

    # From the clients

    def submit(self, pending: Pending) -> None:
        """Raises Reject where too many wait."""
        if len(self._queue) >= self._most:
            self._forget_the_dead()
        if len(self._queue) >= self._most:
            message = f"the queue is full: {self._most} requests wait; try again"
            raise Reject(503, message, reason="queue_full", retry_after=1)
        self._queue.append(pending)
        deadlines = self._deadlines
        while deadlines and (deadlines[0].over or deadlines[0].begun):
            deadlines.popleft()
        deadlines.append(pending)
        if self._sweep is None:
            self._sweep = self._later(pending.deadline - self._clock(), self._expire)
        self._pump()

    def leave(self, pending: Pending) -> None:
        """Nobody waits for its answer any more: one that was not begun never will be, one that was is stopped."""
        if pending.over:
            return
        pending.over = True
        for channel in self._channels:
            if pending.number in channel.given:
                channel.write(wire.pack_cancel(pending.number))
                return
        pending.release()

    def credit(self, pending: Pending, size: int) -> None:
        """The client has taken so many bytes of its answer."""
        for channel in self._channels:
            if pending.number in channel.given:
                channel.write(wire.pack_credit(pending.number, size))

    # From the model processes

    def join(self, channel: Channel) -> None:
        self._channels.append(channel)
        self._pump()

    def heard(self, channel: Channel, frame: memoryview) -> None:
        kind = wire.kind_of(frame)
        if kind == wire.ANSWER:
            answer = wire.unpack_answer(frame)
            channel.took(answer.microseconds, answer.batch_size)
            pending = channel.given[answer.number]
            if answer.flags & wire.LAST:
                self._settle(channel, pending)
            else:
                pending.begun = True
                channel.streams += 1
            if not pending.over:
                pending.over = bool(answer.flags & wire.LAST)
                pending.sink.begin(answer)
        elif kind == wire.CHUNK:
            number, flags, data = wire.unpack_chunk(frame)
            pending = channel.given[number]
            if flags & wire.LAST:
                self._settle(channel, pending)
            if not pending.over:
                pending.over = bool(flags & wire.LAST)
                pending.sink.chunk(flags, data)
        elif kind == wire.DROPPED:
            pending = channel.given[wire.number_of(frame)]
            self._settle(channel, pending)
            if not pending.over:
                # Its deadline had passed there, a moment before it does here.
                self._fail(pending, _late())

    def lost(self, channel: Channel, begun: int, reject: Reject) -> tuple[int, int]:
        """The process is gone. begun: the number up to which it had begun what it was given.

        Those fail; the others are first in the queue again. Returns how many of each.
        """
        self._channels.remove(channel)
        failed, again = list[Pending](), list[Pending]()
        for number, pending in channel.given.items():
            (failed if number <= begun or pending.begun else again).append(pending)
        channel.given = {}
        waiting = [pending for pending in again if not pending.over]
        for pending in again:
            if pending.over:
                pending.release()
        for pending in reversed(waiting):
            pending.sent, pending.number = 0.0, 0
            self._queue.appendleft(pending)
        for pending in failed:
            pending.release()
            if not pending.over:
                self._fail(pending, reject)
        self._pump()
        return len(failed), len(waiting)

    def settled(self) -> None:
        """To be called after what was `heard`: there may be room again."""
        if self._queue:
            self._pump()

    def _settle(self, channel: Channel, pending: Pending) -> None:
        del channel.given[pending.number]
        channel.streams -= pending.begun
        pending.release()

    # Onwards

    def _pump(self) -> None:
        while self._queue:
            channel = self._free()
            if channel is None:
                return
            batch = self._take()
            if not batch:
                return
            self._send(channel, batch)

    def _free(self) -> Channel | None:
        if len(self._channels) == 1:
            channel = self._channels[0]
            return channel if channel.room(self._batch) else None
        free = [channel for channel in self._channels if channel.room(self._batch)]
        return min(free, key=lambda channel: len(channel.given)) if free else None

    def _take(self) -> list[Pending]:
        """The next batch, or none where it is worth waiting for more."""
        queue = self._queue
        while queue and queue[0].over:
            queue.popleft()
        if not queue:
            return []
        if self._batch == 1:
            return [queue.popleft()]
        if len(queue) < self._batch and self._delay > 0:
            left = queue[0].arrived + self._delay - self._clock()
            if left > 0:
                if self._alarm is None:
                    self._alarm = self._later(left, self._rung)
                return []
        batch: list[Pending] = []
        while queue and len(batch) < self._batch:
            pending = queue.popleft()
            if not pending.over:
                batch.append(pending)
        return batch

    def _rung(self) -> None:
        self._alarm = None
        self._pump()

    def _send(self, channel: Channel, batch: list[Pending]) -> None:
        now = self._clock()
        for pending in batch:
            self._number += 1
            pending.sent = now
            channel.given[self._number] = pending
            channel.write(pending.frame(self._number, last=pending is batch[-1]))

    # Deadlines

    def _expire(self) -> None:
        """All have the same time, so that the oldest is the first to be late."""
        now = self._clock()
        while self._deadlines:
            pending = self._deadlines[0]
            if not pending.over:
                if pending.deadline > now:
                    break
                # An answer that has begun goes on: its end is the client's to judge.
                if not pending.begun:
                    self.leave(pending)
                    pending.sink.fail(_late())
            self._deadlines.popleft()
        self._forget_the_dead()
        left = self._deadlines[0].deadline - now if self._deadlines else None
        self._sweep = None if left is None else self._later(max(0.001, left), self._expire)

    def _fail(self, pending: Pending, reject: Reject) -> None:
        pending.over = True
        pending.sink.fail(reject)

    def _forget_the_dead(self) -> None:
        """Those whose clients have left still stood in the queue."""
        if any(pending.over for pending in self._queue):
            self._queue = deque(pending for pending in self._queue if not pending.over)

    def refuse_all(self, reject: Reject) -> None:
        """The end: whoever waits is told."""
        for pending in [*self._queue, *(one for channel in self._channels for one in channel.given.values())]:
            if not pending.over:
                self._fail(pending, reject)
        self._queue.clear()


def _late() -> Reject:
    return Reject(504, "no answer within the time for a request, MOORAGE_REQUEST_TIMEOUT", reason="deadline")
