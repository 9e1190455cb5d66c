"""The stop signal inside a rank, and how the ranks agree on the step at which they honour it."""

from __future__ import annotations

import enum
import os
import signal
import socket
import sys
import threading
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
        self.requested = False
        self.phase = Phase.SET_UP

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
        self.requested = True
        if self.phase is Phase.SET_UP:
            raise Stopped

    def _watch(self, read: socket.socket) -> None:
        while True:
            numbers = read.recv(64)
            if not numbers:
                return
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                self.requested = True
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


class Agreement:
    """The ranks' wishes, or-ed, so that all act on them at the same step.

    The exchange is an all-reduce over gloo that runs while the step computes; its result is taken at the next one.
    So it costs no waiting, and a wish takes effect one step after it was made.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._wishes = torch.zeros(2, dtype=torch.int32)
        self._work: dist.Work | None = None

    def exchange(self, wishes: int) -> int:
        """Give this rank's wishes; take what all ranks wished at the last call. Every rank calls it alike."""
        if self._group is None:
            return wishes
        agreed = self._result()
        self._wishes[0] = wishes & STOP
        self._wishes[1] = wishes & SAVE
        self._work = dist.all_reduce(self._wishes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def settle(self, wishes: int) -> int:
        """Exchange, and take the result at once."""
        if self._group is None:
            return wishes
        return self.exchange(wishes) | self._result()

    def _result(self) -> int:
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._wishes[0]) | int(self._wishes[1])
