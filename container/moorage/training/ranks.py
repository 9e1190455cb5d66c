"""This rank's place in the job, and the small collectives a Run needs beside the training's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Place:
    """A rank as torchrun's environment describes it; one rank where there is none."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    host_rank: int = 0
    attempt: int = 0

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Place:
        return cls(
            rank=int(env.get("RANK", 0)),
            world_size=int(env.get("WORLD_SIZE", 1)),
            local_rank=int(env.get("LOCAL_RANK", 0)),
            local_world_size=int(env.get("LOCAL_WORLD_SIZE", 1)),
            host_rank=int(env.get("GROUP_RANK", 0)),
            attempt=int(env.get("TORCHELASTIC_RESTART_COUNT", 0)),
        )


class Ranks:
    """All ranks of the job, over a gloo group of their own: it never queues behind gradients, and needs no device."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.group = dist.new_group(backend="gloo") if place.world_size > 1 else None

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each of `values` summed over the ranks."""
        if self.group is None or not values:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.group)
        return list(tensor.tolist())

    def from_main(self, values: Sequence[float]) -> list[float]:
        """Rank 0's `values`, on every rank; every rank gives as many."""
        if self.group is None or not values:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, 0, group=self.group)
        return list(tensor.tolist())

    def part(self) -> None:
        """Wait for all, then leave the process groups."""
        if self.group is not None:
            dist.barrier(group=self.group)
        if dist.is_initialized():
            dist.destroy_process_group()
