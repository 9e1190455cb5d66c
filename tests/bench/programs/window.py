"""What a checkpoint costs a loop: the pause it makes, and all the time lost until it is whole on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from turns_client import Turns

LAYERS, WIDTH = 16, 1024
"""16.8 million parameters: 67 MB, and 201 MB with AdamW's two moments."""


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def batch() -> torch.Tensor:
    return torch.randn(8, WIDTH)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model(x)
    return output.square().mean()


def take_turns(
    *,
    step: Callable[[], object],
    save: Callable[[int], Callable[[], bool]],
    clean: Callable[[int], object] = lambda number: None,
) -> None:
    """Measure one save a turn, until there are no more turns.

    save(n) starts the n-th checkpoint, and returns the question whether it is whole. clean(n) tidies up after
    it, and is not measured.
    """
    turns, number = Turns(dist.get_rank()), 0
    step()
    while turns.wait():
        number += 1
        usual = median(seconds(step) for _ in range(5))
        dist.barrier()
        started = time.perf_counter()
        whole = save(number)
        saved = time.perf_counter()
        call = saved - started
        next_step = max(0.0, seconds(step) - usual)
        num_steps = 1
        while not everywhere(whole()):
            step()
            num_steps += 1
        lost = time.perf_counter() - started - num_steps * usual
        dist.barrier()
        clean(number)
        # The next contender must not wait for this one's pages.
        os.sync()
        dist.barrier()
        turns.report(call, call + next_step, max(lost, call))


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def everywhere(done: bool) -> bool:
    flag = torch.tensor(int(done))
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)
