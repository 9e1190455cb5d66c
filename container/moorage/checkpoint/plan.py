"""Which rank writes what. Made once by all ranks together, and kept for as long as the tensors keep their shapes.

The items are DCP's own. What several ranks hold alike is written by one of them, the bytes spread evenly; large
replicated tensors are cut into rows, so that one embedding does not make one rank's pause.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.checkpoint import SavePlan
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan, create_default_local_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from moorage.checkpoint.group import Group
from moorage.checkpoint.metadata import check_coverage
from moorage.errors import CheckpointError

PIECE = 16 << 20
"""Bytes into which replicated tensors of more than twice as many are cut."""


class Tensors(dict[str, Tensor]):
    """Tensors of a checkpoint by name. replicated: names of plain tensors that every rank holds bit for bit alike.

    Any other plain tensor is saved as the first rank that has it holds it: buffers such as running means differ between
    the ranks of DDP, and it is the first rank's that counts.
    steady: names of those that training leaves alone until the next step of a tracked optimizer.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        replicated: frozenset[str] = frozenset(),
        steady: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(tensors or {})
        self.replicated, self.steady = replicated, steady


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An item that this rank could write. shared: any rank that has it may do so, instead of the first."""

    item: WriteItem
    shared: bool

    @property
    def size(self) -> int:
        """Bytes."""
        data = _data(self.item)
        return math.prod(data.chunk.sizes) * data.properties.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Plan:
    """items: what this rank writes. by_rank and metadata, on rank 0 only: what all write, not yet where it is."""

    items: tuple[WriteItem, ...]
    by_rank: tuple[tuple[WriteItem, ...], ...] = ()
    metadata: Metadata | None = None


def structure(tensors: Mapping[str, Tensor]) -> Hashable:
    """Equal for as long as a plan made of such tensors holds."""
    return tuple(
        (
            name,
            tensor.shape,
            tensor.dtype,
            tensor.device,
            (tensor.placements, tensor.device_mesh) if isinstance(tensor, DTensor) else None,
        )
        for name, tensor in tensors.items()
    )


def make_plan(tensors: Mapping[str, Tensor], group: Group) -> Plan:
    """Collective. Raises CheckpointError on all ranks when the tensors of one cannot be planned."""
    mine: list[Candidate] = []
    group.each(
        "a checkpoint of these tensors cannot be planned", lambda: mine.extend(candidates(tensors, group.world_size))
    )
    everyone = group.collect(mine)
    kept: list[list[int]] | None = None
    by_rank: tuple[tuple[WriteItem, ...], ...] = ()
    metadata: Metadata | None = None

    def assign_all() -> None:
        nonlocal kept, by_rank, metadata
        if group.rank == 0:
            kept = assign(everyone)
            chosen = [[theirs[i].item for i in kept[rank]] for rank, theirs in enumerate(everyone)]
            plans, metadata = create_default_global_save_plan([SavePlan(items) for items in chosen])
            check_coverage(metadata)
            by_rank = tuple(tuple(plan.items) for plan in plans)

    group.each("the ranks' tensors do not make one checkpoint", assign_all)
    return Plan(items=tuple(mine[i].item for i in group.hand_out(kept)), by_rank=by_rank, metadata=metadata)


def candidates(tensors: Mapping[str, Tensor], world_size: int) -> Iterator[Candidate]:
    """What this rank could write of `tensors`. Raises CheckpointError for a tensor that is a sum not yet made."""
    replicated = tensors.replicated if isinstance(tensors, Tensors) else frozenset()
    for item in create_default_local_save_plan(dict(tensors), False).items:
        name = item.index.fqn
        tensor = tensors[name]
        if isinstance(tensor, DTensor):
            if any(placement.is_partial() for placement in tensor.placements):
                raise CheckpointError(f"{name} is a DTensor with a partial placement, which cannot be saved")
            # A rank that got no row of a small tensor has an empty shard.
            if math.prod(_data(item).chunk.sizes) or not tensor.numel():
                yield Candidate(item=item, shared=True)
        elif name in replicated and world_size > 1:
            yield from (Candidate(item=piece, shared=True) for piece in _cut(item, tensor))
        else:
            yield Candidate(item=item, shared=False)


def _cut(item: WriteItem, tensor: Tensor) -> Iterator[WriteItem]:
    if tensor.nbytes <= 2 * PIECE or tensor.shape[0] < 2:
        yield item
        return
    rows = max(1, tensor.shape[0] * PIECE // tensor.nbytes)
    for start in range(0, tensor.shape[0], rows):
        offsets = torch.Size([start, *[0] * (tensor.dim() - 1)])
        sizes = torch.Size([min(rows, tensor.shape[0] - start), *tensor.shape[1:]])
        data = dataclasses.replace(_data(item), chunk=ChunkStorageMetadata(offsets=offsets, sizes=sizes))
        yield WriteItem(index=MetadataIndex(item.index.fqn, offsets), type=WriteItemType.SHARD, tensor_data=data)


def assign(everyone: Sequence[Sequence[Candidate]]) -> list[list[int]]:
    """For each rank the positions of those candidates that it shall write.

    The largest first, each to the rank with the least to write so far among those that have it: at most 4/3 of the best
    spread (Graham, Bounds on Multiprocessing Timing Anomalies, 1969).
    """
    holders: dict[MetadataIndex, list[tuple[int, int]]] = {}
    for rank, theirs in enumerate(everyone):
        for position, candidate in enumerate(theirs):
            holders.setdefault(candidate.item.index, []).append((rank, position))
    load = [0] * len(everyone)
    kept: list[list[int]] = [[] for _ in everyone]

    def first(found: list[tuple[int, int]]) -> Candidate:
        rank, position = found[0]
        return everyone[rank][position]

    for found in sorted(holders.values(), key=lambda found: -first(found).size):
        shared = all(everyone[rank][position].shared for rank, position in found)
        rank, position = min(found, key=lambda place: (load[place[0]], place[0])) if shared else found[0]
        kept[rank].append(position)
        load[rank] += everyone[rank][position].size
    return [sorted(positions) for positions in kept]


def source(item: WriteItem, tensors: Mapping[str, Tensor]) -> Tensor:
    """The values of an item, where they are now; shares the memory of the tensor."""
    tensor = tensors[item.index.fqn].detach()
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    chunk = _data(item).chunk
    return tensor if tensor.shape == chunk.sizes else tensor.narrow(0, chunk.offsets[0], chunk.sizes[0])


def _data(item: WriteItem) -> TensorWriteData:
    assert item.tensor_data is not None, f"{item.index.fqn} is not a tensor"
    return item.tensor_data
