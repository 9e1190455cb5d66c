"""What one rank writes: copied out of the training's way, then into one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.checkpoint.planner import WriteItem

from moorage.checkpoint.copying import Copying, Pair
from moorage.checkpoint.durable import FileFacts
from moorage.checkpoint.image import Image
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
        found = [source(item, tensors) for item in self._items]
        self._image = Image(found, pinned=any(tensor.is_cuda for tensor in found))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._image.bytes)

    def touch(self) -> None:
        """Have the system give the memory now: it is what takes longest of a first copy."""
        for copy in self._image.copies:
            copy.zero_()

    def copy(self, tensors: Mapping[str, Tensor], steady: frozenset[str] = frozenset()) -> Copying:
        """Copy the items, those of the tensors in `steady` behind the training."""
        return Copying(
            [
                Pair(name=item.index.fqn, source=source(item, tensors), copy=copy)
                for item, copy in zip(self._items, self._image.copies, strict=True)
            ],
            steady,
        )

    def write(self, file: Writer, name: str, host: str) -> Shard:
        """Write the copies, once they are all made. Raises as Writer does."""
        file.write(self._image.bytes)
        return Shard(name=name, host=host, facts=file.finish(), places=self._image.places)
