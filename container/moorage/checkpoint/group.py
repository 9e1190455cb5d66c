"""The ranks of a checkpoint, on a gloo group that nothing else uses.

On the default group a save behind the training would wait for the training's own collectives, and they for it. The
group is used by one thread at a time: the main one, or the thread of a save, which the main one waits for first.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from moorage.errors import CheckpointError, MoorageError

T = TypeVar("T")

USUAL = (
    MoorageError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    pickle.PickleError,
)
"""What torch and the system raise when work on one rank cannot be done; nothing that asks a process to end."""


class Group:
    """What ranks tell each other. Every method is collective, and with one rank needs no process group."""

    def __init__(self, rank: int, world_size: int, timeout: timedelta) -> None:
        self.rank, self.world_size = rank, world_size
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if world_size > 1 else None

    def gather(self, value: T) -> list[T]:
        """Each rank's value, by rank, on all of them."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def collect(self, value: T) -> list[T]:
        """Each rank's value, by rank, on rank 0; empty on the others."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self._group)
        return values or []

    def share(self, value: T | None, source: int = 0) -> T:
        """The value that rank `source` has."""
        box: list[Any] = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=source, group=self._group)
        return box[0]  # type: ignore[no-any-return]

    def hand_out(self, values: Sequence[T] | None) -> T:
        """To each rank its own of the values that rank 0 has."""
        if self.world_size == 1:
            assert values is not None
            return values[0]
        box: list[Any] = [None]
        dist.scatter_object_list(box, list(values) if values is not None else None, src=0, group=self._group)
        return box[0]  # type: ignore[no-any-return]

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each over all ranks."""
        tensor = torch.tensor(values, dtype=torch.int64)
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return tensor.tolist()

    def each(self, what: str, action: Callable[[], T]) -> list[T]:
        """What `action` gave on each rank. When it fails on any, all raise CheckpointError naming the first."""
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = action()
        except USUAL as error:
            failure = error
        outcomes = self.gather((result, _describe(failure)))
        for rank, (_, reason) in enumerate(outcomes):
            if reason:
                if isinstance(failure, MoorageError):
                    raise failure
                where = f"on rank {rank}: " if self.world_size > 1 else ""
                raise CheckpointError(f"{what}", why=where + reason) from failure
        return [value for value, _ in outcomes]  # type: ignore[misc]

    def send(self, tensor: Tensor, to: int) -> None:
        dist.send(tensor, dst=to, group=self._group)

    def receive(self, tensor: Tensor, source: int) -> None:
        dist.recv(tensor, src=source, group=self._group)

    def close(self) -> None:
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None


def _describe(error: BaseException | None) -> str:
    if error is None:
        return ""
    return str(error) if isinstance(error, MoorageError) else f"{type(error).__name__}: {error}"
