"""Data order: one global permutation by (seed, epoch), whose only state is the number of samples consumed.

A global batch is the next `batch_size` samples of the permutation, whatever the number of ranks; rank r takes the
stripe r, r + world_size, ... of it. So another world size goes on from the same sample with the same global batches.
The scheme is that of OLMo-core and litData. Random numbers a dataset draws are seeded by (seed, epoch, position): they
do not depend on workers, nor on where a job was interrupted.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler


class Part(NamedTuple):
    """What a rank fetches for one micro-batch: dataset indices, and the seed of the dataset's random numbers."""

    seed: int
    indices: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """One rank's share of one micro-batch.

    weight: what the mean loss over `indices` counts in the mean over the global batch, times the world size,
    so that averaging gradients over ranks gives the gradient of that mean. It is 0 for a share that only keeps a
    rank in step with the others.
    last: the optimizer steps after this one. num_samples: samples of the whole global batch.
    """

    part: Part
    weight: float
    last: bool
    num_samples: int


def mix(*numbers: int) -> int:
    """A well spread 63-bit seed from small integers: splitmix64 (Steele, Lea, Flood 2014) folded over them."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def seed_all(seed: int) -> None:
    """Seed torch (every device), `random`, and numpy's global generator if numpy is there."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed & 0xFFFFFFFF)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes two orders the same; the number of ranks and micro-batches does not matter."""

    num_samples: int
    batch_size: int
    shuffle: bool
    drop_last: bool
    seed: int


class GlobalOrder(Sampler[Any]):
    """The order of one dataset, and this rank's stripe of it. A batch sampler for DataLoader."""

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        rank: int,
        world_size: int,
        accumulation: int = 1,
    ) -> None:
        self.identity = Identity(
            num_samples=num_samples, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed
        )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self.epoch, self.start = 0, 0

    def permutation(self, epoch: int) -> Sequence[int] | torch.Tensor:
        """The dataset's indices in the order of `epoch`, the same on every rank and torch platform."""
        if not self.identity.shuffle:
            return range(self.num_samples)
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        return torch.randperm(self.num_samples, generator=generator)

    def end(self) -> int:
        """Samples an epoch consumes."""
        return self.num_samples - self.num_samples % self.batch_size if self.identity.drop_last else self.num_samples

    def num_batches(self, start: int = 0) -> int:
        """Global batches from sample `start` to the end of the epoch."""
        return max(0, -(-(self.end() - start) // self.batch_size))

    def plan(self, epoch: int, start: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of `epoch` from sample `start` on. Every rank gets the same number of them."""
        order = self.permutation(epoch)
        for position in range(start, self.end(), self.batch_size):
            chunk = order[position : min(position + self.batch_size, self.end())]
            yield from self._share(_indices(chunk), mix(self.seed, epoch, position, self.rank))

    def _share(self, chunk: list[int], seed: int) -> Iterator[MicroBatch]:
        mine = chunk[self.rank :: self.world_size]
        for number in range(self.accumulation):
            indices = mine[number :: self.accumulation]
            yield MicroBatch(
                part=Part(mix(seed, number), indices or chunk[:1]),
                weight=len(indices) * self.world_size / len(chunk),
                last=number == self.accumulation - 1,
                num_samples=len(chunk),
            )

    def evaluation_plan(self) -> Iterator[Part]:
        """Every sample once, every rank the same number of batches of at least one sample.

        Forward passes of sharded models are collective, so no rank may have one more than another: a last batch
        smaller than the world size joins the one before it.
        """
        edges = list(range(0, self.num_samples, self.batch_size))
        if len(edges) > 1 and self.num_samples - edges[-1] < self.world_size:
            edges.pop()
        for number, position in enumerate(edges):
            end = edges[number + 1] if number + 1 < len(edges) else self.num_samples
            chunk = list(range(position, end))
            yield Part(mix(self.seed, position, self.rank), chunk[self.rank :: self.world_size] or chunk[:1])

    def __iter__(self) -> Iterator[Part]:
        if self.epoch < 0:
            return self.evaluation_plan()
        return (micro.part for micro in self.plan(self.epoch, self.start))

    def __len__(self) -> int:
        return self.num_batches(self.start) * self.accumulation


EVALUATION = -1
"""The epoch number under which a GlobalOrder gives its evaluation plan."""


def _indices(chunk: Any) -> list[int]:
    return chunk.tolist() if isinstance(chunk, torch.Tensor) else list(chunk)


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor in `batch` (lists, tuples, dicts, named tuples) on `device`."""
    if device.type == "cpu":
        return batch
    from torch.utils._pytree import tree_map_only

    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)
