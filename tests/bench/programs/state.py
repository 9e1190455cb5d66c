"""The model whose state the benchmarks of checkpoints save and restore; its size is set by BENCH_LAYERS."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import nn

LAYERS, WIDTH = int(os.environ["BENCH_LAYERS"]), 1024
"""A layer has 4.2 MB, and 12.6 MB with AdamW's two moments."""

Whole = Callable[[], bool]
"""Whether a checkpoint is complete on disk."""


class Block(nn.Linear):
    """Adds to its input: through many plain layers values would fade to subnormal numbers, with which a processor
    reckons many times slower."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Slow to learn: the last turn is to find numbers like those of the first."""
    return torch.optim.AdamW(model.parameters(), lr=1e-6)


def batch() -> torch.Tensor:
    return torch.randn(8, WIDTH)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model(x)
    return output.square().mean()
