"""What one rank writes: copied out of the training's way, then into one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.planner import WriteItem

from moorage.checkpoint.durable import FileFacts
from moorage.checkpoint.plan import source
from moorage.checkpoint.storage import Writer


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One rank's file. places: for each item of its plan, in order, (offset, length) in bytes."""

    name: str
    host: str
    facts: FileFacts
    places: tuple[tuple[int, int], ...]


class Staging:
    """Memory for a copy of one rank's items, kept from save to save; page-locked where they come from a GPU."""

    def __init__(self, items: Sequence[WriteItem], tensors: Mapping[str, Tensor]) -> None:
        self._items = tuple(items)
        self._cuda = torch.cuda.is_available()
        self._copies = [
            torch.empty_like(found, device="cpu", pin_memory=self._cuda and found.is_cuda)
            for found in (source(item, tensors) for item in self._items)
        ]
        self._copied: torch.cuda.Event | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(copy.nbytes for copy in self._copies)

    def touch(self) -> None:
        """Have the system give the memory now: it is what takes longest of a first copy."""
        for copy in self._copies:
            copy.zero_()

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the items. When it returns the tensors may change: from a GPU the copies are queued ahead of that."""
        if self._copies:
            torch._foreach_copy_(self._copies, [source(item, tensors) for item in self._items], non_blocking=True)
        if self._cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def write(self, file: Writer, name: str, host: str) -> Shard:
        """Write the copies into one file, each by torch.save. Raises as Writer does."""
        if self._copied is not None:
            self._copied.synchronize()
        places = []
        for copy in self._copies:
            start = file.position
            torch.save(copy, cast(IO[bytes], file))
            file.check()
            places.append((start, file.position - start))
        return Shard(name=name, host=host, facts=file.finish(), places=tuple(places))
