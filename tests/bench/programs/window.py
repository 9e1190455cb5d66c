"""What a checkpoint costs a loop: the pause, all the time it adds, and the pace while it is under way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from state import Whole
from turns_client import Turns

STEPS = int(os.environ["BENCH_STEPS"])
"""Steps of a loop that saves once, which is compared with loops of as many before and after it."""


def take_turns(
    *,
    step: Callable[[], object],
    save: Callable[[int], Whole],
    waited: Callable[[], float] = lambda: 0.0,
    clean: Callable[[int], object] = lambda number: None,
) -> None:
    """Measure one save a turn, until there are no more turns: seconds paused, seconds added, and by how much the steps
    take longer while it is under way.

    save(n) starts the n-th checkpoint. waited() tells for how many seconds its copy held up the last step of the
    optimizer. clean(n) tidies up, and is not measured.
    """
    turns, number = Turns(dist.get_rank()), 0
    seconds(step, 2)
    while turns.wait():
        number += 1
        dist.barrier()
        before = seconds(step, STEPS)
        started = time.perf_counter()
        whole = save(number)
        called = time.perf_counter()
        pause, num_slow = called - started, 0
        while not everywhere(whole()):
            step()
            pause += waited()
            num_slow += 1
        slow = time.perf_counter() - called
        seconds(step, STEPS - num_slow)
        total = time.perf_counter() - started
        usual = (before + seconds(step, STEPS)) / (2 * STEPS)
        clean(number)
        # The next contender must not wait for this one's pages.
        os.sync()
        dist.barrier()
        added = total - max(STEPS, num_slow) * usual
        turns.report(pause, added, slow / (num_slow * usual) if num_slow else 1.0)


def seconds(action: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        action()
    return time.perf_counter() - started


def everywhere(done: bool) -> bool:
    flag = torch.tensor(int(done))
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)
