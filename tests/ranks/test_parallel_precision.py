"""Low precision on real ranks: steps agreed between ranks, close to fp32, with recomputed blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from moorage.training.parallel import clip, parallelize, unwrap
from moorage.training.precision import Precision
from moorage.training.strategy import Choice
from ranks.gloo import run_ranks

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.first = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.norm(self.linear(self.first(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.LayerNorm(16)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        self.offset = offset
        x = self.entry(x)
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(x)
        return out


def spread(model: nn.Module, strategy: str, precision: Precision, **options: Any) -> nn.Module:
    world_size = dist.get_world_size()
    choice = Choice(strategy=strategy, shard_size={"fsdp": world_size, "hsdp": 2}.get(strategy, 1), why="the test")
    return parallelize(model, choice, device=CPU, precision=precision, **options)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def run(rank: int, strategy: str, name: str, recomputed: bool) -> tuple[dict[str, torch.Tensor], list[str], float]:
    """Weights after two steps, the types seen, and the last loss."""
    torch.manual_seed(0)
    precision = Precision(name, CPU)
    model = spread(Net(), strategy, precision, activation_checkpointing=recomputed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    offset = torch.tensor([1001.0])
    for step in range(2):
        x = torch.randn(6, 16, generator=torch.Generator().manual_seed(10 * step + rank))
        out = model(x, offset)
        loss = out.pow(2).mean() / 10  # scaled by 65536 it stays within fp16
        precision.scale(loss).backward()
        precision.unscale(optimizer)
        clip(model, 1.0)
        precision.step(optimizer)
        optimizer.zero_grad()
        precision.update()
    inner = unwrap(model)
    types = [str(out.dtype), str(next(inner.parameters()).dtype), str(inner.offset.item())]  # type: ignore[operator, union-attr]
    return {key: whole(value) for key, value in inner.named_parameters()}, types, loss.item()


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 2), ("fsdp", 2), ("hsdp", 4)])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_close_to_fp32(strategy: str, world_size: int, precision: str) -> None:
    exact, _, exact_loss = run_ranks(run, world_size, strategy, "fp32", False)[0]
    for weights, types, _ in run_ranks(run, world_size, strategy, precision, False):
        # Outputs and parameters are fp32; an input that bf16 would round to 1000 is left alone.
        assert types == ["torch.float32", "torch.float32", "1001.0"]
        for name, weight in weights.items():
            torch.testing.assert_close(weight, exact[name], atol=0.02, rtol=0, msg=name)
    assert exact_loss == pytest.approx(run_ranks(run, world_size, strategy, precision, False)[0][2], rel=0.05)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_recomputed_blocks_train_the_same_in_bf16(strategy: str) -> None:
    plain = run_ranks(run, 2, strategy, "bf16", False)[0][0]
    recomputed = run_ranks(run, 2, strategy, "bf16", True)[0][0]
    for name, weight in plain.items():
        torch.testing.assert_close(weight, recomputed[name], atol=0, rtol=0, msg=name)


def overflow(rank: int, strategy: str) -> list[tuple[bool, bool, float]]:
    """Steps in which nobody, then rank 1 only, then nobody overflows: skipped, weights moved, scale."""
    torch.manual_seed(0)
    precision = Precision("fp16", CPU)
    model = spread(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1)), strategy, precision)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    assert precision.scaler is not None
    seen = []
    for value in (1.0, 1e30 if rank == 1 else 1.0, 1.0):
        before = [whole(p) for p in model.parameters()]
        loss = (model(torch.ones(2, 8)) * value).mean() / 8
        precision.scale(loss).backward()
        precision.step(optimizer)
        optimizer.zero_grad()
        skipped = precision.update()
        moved = any(not torch.equal(a, whole(p)) for a, p in zip(before, model.parameters(), strict=True))
        assert all(whole(p).isfinite().all() for p in model.parameters())
        seen.append((skipped, moved, precision.scaler.get_scale()))
    return seen


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 2), ("fsdp", 2), ("hsdp", 4)])
def test_an_overflow_on_one_rank_skips_the_step_on_all(strategy: str, world_size: int) -> None:
    for seen in run_ranks(overflow, world_size, strategy):
        assert seen == [(False, True, 65536.0), (True, False, 32768.0), (False, True, 32768.0)]
