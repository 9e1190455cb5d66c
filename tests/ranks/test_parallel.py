"""The strategies on real ranks: one model, one gradient, and weights that a resumed job reproduces to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from moorage.training import parallel
from moorage.training.parallel import clip, parallelize, set_gradient_sync, unwrap
from moorage.training.precision import Precision
from moorage.training.strategy import Choice
from ranks.gloo import run_ranks

CPU = torch.device("cpu")
WIDTH = 32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Net(nn.Module):
    """Defined from its end to its start, so that gradients do not arrive in the order of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 10)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.stem = nn.Linear(64, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build() -> Net:
    torch.manual_seed(0)
    return Net()


def choice(strategy: str, world_size: int) -> Choice:
    shard_size = {"fsdp": world_size, "hsdp": 2}.get(strategy, 1)
    return Choice(strategy=strategy, shard_size=shard_size, why="the test")


def spread(
    model: nn.Module | Callable[[], nn.Module], strategy: str, precision: str = "fp32", **options: Any
) -> nn.Module:
    world_size = torch.distributed.get_world_size()
    return parallelize(model, choice(strategy, world_size), device=CPU, precision=Precision(precision, CPU), **options)


def batch(step: int, rank: int, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(size, 64, generator=numbers), torch.randint(0, 10, (size,), generator=numbers)


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    state = unwrap(model).state_dict()
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for k, v in state.items()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rank: int) -> None:
    for step in steps:
        torch.manual_seed(100 * step + rank)
        x, y = batch(step, rank)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def resume(rank: int, strategy: str, settle: bool) -> bool:
    if not settle:
        parallel.settle_buckets = lambda model: None
    options = {"lr": 0.05, "momentum": 0.9}
    model = spread(build(), strategy)
    optimizer = torch.optim.SGD(model.parameters(), **options)
    train(model, optimizer, range(4), rank)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    # Statistics differ between the ranks now; a checkpoint holds rank 0's.
    for name, buffer in unwrap(model).named_buffers():
        key = f"module.{name}" if strategy == "ddp" else name
        shared = buffer.clone()
        torch.distributed.broadcast(shared, 0)
        weights[key] = shared
    train(model, optimizer, range(4, 8), rank)

    again = spread(build(), strategy)
    optimizer = torch.optim.SGD(again.parameters(), **options)
    again.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(again, optimizer, range(4, 8), rank)
    a, b = whole(model), whole(again)
    statistics = {"norm.running_mean", "norm.running_var"}
    return same(
        {k: v for k, v in a.items() if k not in statistics}, {k: v for k, v in b.items() if k not in statistics}
    )


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 3), ("fsdp", 3), ("hsdp", 4)])
def test_a_resumed_job_has_the_weights_of_an_uninterrupted_one_to_the_bit(strategy: str, world_size: int) -> None:
    assert run_ranks(resume, world_size, strategy, True) == [True] * world_size


def test_without_the_settled_buckets_a_resumed_ddp_job_rounds_otherwise() -> None:
    """If this passes some day without settling, the warm-up can go."""
    assert run_ranks(resume, 3, "ddp", False) == [False] * 3
