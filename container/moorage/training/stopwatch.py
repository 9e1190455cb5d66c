"""The time that is a rank's own, in which it waits for no other: it tells a slow rank from those that it holds up.

In a step a rank gets its batch and goes forward; then come the backward pass and the optimizer, in which all wait for
the last. The watch runs in the former only:

| what | from | to |
|---|---|---|
| input | the program asks for a batch | it has it, on its device |
| compute | it has it | `run.backward` |

Where a forward pass waits for others, as DDP's does to take over rank 0's buffers, the watch stands still meanwhile.
Where it does so in every layer, as FSDP's does, only input is taken.

On CUDA what is computed goes on behind the program. There events are put into the stream, for one step in `EVERY`, and
read once they have happened: nothing ever waits for one.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

EVERY = 8
"""Steps of which one is timed on CUDA, and counts for all: an event costs some microseconds."""

_PENDING = 64
"""Pairs of events that may wait to happen; what comes on top of them is not timed."""

clock = time.perf_counter


class Stopwatch:
    """Of one rank. Seconds, in all."""

    def __init__(self, device: torch.device) -> None:
        self.input_seconds = 0.0
        self.compute_seconds = 0.0
        self.takes_compute = True
        self._on_cuda = device.type == "cuda"
        self._asked: float | None = None
        self._began: Any = None
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._steps = 0

    def ask(self) -> None:
        """The program asks for its next batch."""
        self._began, self._asked = None, clock()

    def deliver(self) -> None:
        """It has it."""
        now = clock()
        if self._asked is not None:
            self.input_seconds += now - self._asked
            self._asked = None
        self.go()

    def go(self) -> None:
        """The rank computes, from here on until `halt`."""
        if self.takes_compute:
            self._began = self._event() if self._on_cuda else clock()

    def halt(self) -> None:
        """It is about to wait for others. Harmless where the watch stands still."""
        began, self._began = self._began, None
        if began is None:
            return
        if not self._on_cuda:
            self.compute_seconds += clock() - began
        elif (ended := self._event()) is not None:
            self._pending.append((began, ended))

    def step(self) -> tuple[float, float]:
        """A step is done: seconds for input and for computing, so far."""
        self._began = None
        self._steps += 1
        while self._pending and self._pending[0][1].query():
            began, ended = self._pending.popleft()
            self.compute_seconds += EVERY * began.elapsed_time(ended) / 1000
        return self.input_seconds, self.compute_seconds

    def _event(self) -> torch.cuda.Event | None:
        if self._steps % EVERY or len(self._pending) >= _PENDING:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def follow(self, model: nn.Module, *, sharded: bool, compiled: bool) -> None:
        """See where the forward pass of `model` waits for others."""
        waits = isinstance(model, DistributedDataParallel) and model.broadcast_buffers and _has_buffers(model)
        if sharded or (waits and compiled):  # a hook would break what is compiled into parts
            self.takes_compute = False
        elif waits:
            inner = model.module
            assert isinstance(inner, nn.Module)
            model.register_forward_pre_hook(_Mark(self, "halt"))
            inner.register_forward_pre_hook(_Mark(self, "go"))


def _has_buffers(model: nn.Module) -> bool:
    return next(model.buffers(), None) is not None


class _Mark:
    """A hook that can be copied and pickled with its module, as programs do; the copy does nothing."""

    def __init__(self, watch: Stopwatch | None = None, method: str = "") -> None:
        self._call = getattr(watch, method) if watch is not None else None

    def __call__(self, *_: object) -> None:
        # An evaluation, or a second forward pass after the backward one, is no part of what is timed.
        if self._call is not None and torch.is_grad_enabled():
            self._call()

    def __reduce__(self) -> tuple[type[_Mark], tuple[()]]:
        return _Mark, ()
