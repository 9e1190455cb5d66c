"""The one model, data and pace of the loop benchmark: each program brings only its own loop."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.utils.data import TensorDataset
from turns_client import Turns

STEPS = 50
"""Steps in a turn: about half a second."""
GLOBAL_BATCH, RANKS = 64, 2
LOG_EVERY = 50
"""The toolkit's and Lightning's default: every program reports its mean loss that often."""


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4096, 1, 16, 16, generator=generator)
    labels = torch.randint(0, 10, (4096,), generator=generator)
    return TensorDataset(images, labels)


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


class Pace:
    """Divides a loop into turns of STEPS steps."""

    def __init__(self, rank: int) -> None:
        self.turns, self.steps = Turns(rank), 0
        self.over = not self.turns.wait()
        self._started = time.perf_counter()

    def step(self) -> bool:
        """Count one step; whether the benchmark is over."""
        self.steps += 1
        if self.steps % STEPS == 0:
            self.turns.report(time.perf_counter() - self._started)
            self.over = not self.turns.wait()
            self._started = time.perf_counter()
        return self.over
