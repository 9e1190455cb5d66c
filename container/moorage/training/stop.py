"""The stop signal inside a rank, and how the ranks agree on the step at which they honour it."""

from __future__ import annotations

import enum
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

import torch
import torch.distributed as dist

from moorage.errors import STOPPED

STUCK_SECONDS = 5.0
"""A rank that was asked to stop during set-up, where nothing is to be saved, leaves a stuck call after this long."""


class Stopped(SystemExit):
    """Training was stopped, its state saved. A SystemExit: it passes through `except Exception` and runs `finally`."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class Phase(enum.Enum):
    SET_UP = "set-up"  # nothing to lose: leave at once
    TRAINING = "training"  # leave at the step the ranks agree on, after a save
    FINISHING = "finishing"  # the work is done: finish it


class StopSignal:
    """SIGTERM (and the first Ctrl-C) as a flag.

    A Python handler does not run while the main thread is inside a collective, so a thread reads the signal from
    signal.set_wakeup_fd and raises the flag at once; the handler itself only ends a rank that is still setting up.
    """

    def __init__(self) -> None:
        self.requested_at: float | None = None
        """As time.monotonic()."""
        self.phase = Phase.SET_UP

    @property
    def requested(self) -> bool:
        return self.requested_at is not None

    def _request(self) -> None:
        if self.requested_at is None:
            self.requested_at = time.monotonic()

    def ends(self, grace: float) -> float:
        """When this rank will be killed, as time.monotonic(). grace: seconds from the signal, which may have come to
        other ranks and not yet to this one.
        """
        return grace + (time.monotonic() if self.requested_at is None else self.requested_at)

    def install(self) -> None:
        """Call in the main thread. A SIGTERM from now on is noticed."""
        read, write = socket.socketpair()
        write.setblocking(False)
        self._sockets = (read, write)
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), name="moorage-stop", daemon=True).start()

    def begin_training(self) -> None:
        if self.phase is Phase.SET_UP:
            self.phase = Phase.TRAINING

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self._request()
        if self.phase is Phase.SET_UP:
            raise Stopped

    def _watch(self, read: socket.socket) -> None:
        while True:
            numbers = read.recv(64)
            if not numbers:
                return
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                self._request()
                if self.phase is Phase.SET_UP:
                    # The main thread may sit in a call that does not return, waiting for ranks that have left.
                    timer = threading.Timer(STUCK_SECONDS, self._leave_if_stuck)
                    timer.daemon = True
                    timer.start()

    def _leave_if_stuck(self) -> None:
        if self.phase is Phase.SET_UP:
            leave_now()


def leave_now() -> None:
    """Exit 143 without unwinding."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(STOPPED)


STOP, SAVE = 1, 2
"""What a rank can ask of all ranks: bits of one number."""


EXCHANGE_SECONDS = 0.2
"""About how often ranks exchange their wishes: an exchange takes the cores a part of a millisecond."""


class Agreement:
    """The ranks' wishes, or-ed, so that all act on them at the same step.

    The exchange is an all-reduce over gloo that runs while the step computes; its result is taken at the next one, so
    it costs no waiting. Where steps are short not every step has one: how many go by is reckoned from the number of
    calls and from the pace of the slowest rank, which is exchanged too, so that all ranks reckon alike.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._message = torch.zeros(3, dtype=torch.int64)
        self._work: dist.Work | None = None
        self._wishes = self._kept = 0
        self._calls = self._posted_at = 0
        self._posted_time = time.monotonic()
        self._due = 1
        self._microseconds = 0  # per call, of the slowest rank

    def exchange(self, wishes: int, *, able: int = STOP | SAVE) -> int:
        """Give this rank's wishes; take what all ranks wished when they last exchanged them. Every rank calls alike.

        able: to do now. What else was agreed on is kept for the next call that is able to.
        """
        if self._group is None:
            return wishes
        self._calls += 1
        self._wishes |= wishes
        agreed = self._result()
        if self._calls >= self._due:
            self._post()
            # The eighth keeps the first calls close together, while the pace is not yet known well.
            most = self._calls // 8
            self._due = self._calls + max(1, min(most, int(EXCHANGE_SECONDS * 1e6) // max(1, self._microseconds)))
        return self._answer(agreed, able)

    def settle(self, wishes: int, *, able: int = STOP | SAVE) -> int:
        """Exchange, and take the result at once."""
        if self._group is None:
            return wishes
        self._wishes |= wishes
        agreed = self._result()
        self._post()
        return self._answer(agreed | self._result(), able)

    def _answer(self, agreed: int, able: int) -> int:
        agreed |= self._kept
        self._kept = agreed & ~able
        return agreed & able

    def _post(self) -> None:
        now = time.monotonic()
        pace = (now - self._posted_time) / max(1, self._calls - self._posted_at)
        self._posted_time, self._posted_at = now, self._calls
        self._message[0], self._message[1] = self._wishes & STOP, self._wishes & SAVE
        self._message[2] = int(pace * 1e6)
        self._wishes = 0
        self._work = dist.all_reduce(self._message, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _result(self) -> int:
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        stop, save, pace = (int(value) for value in self._message)
        self._microseconds = pace
        return stop | save
