"""From a verified checkpoint into tensors: each rank reads what it needs, where it can straight into their memory."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

from moorage.checkpoint.items import Item, find_item
from moorage.checkpoint.source import File, Source
from moorage.errors import CheckpointError

_RUN = 64 << 20
"""Bytes of a file that one thread reads before another may go on with it."""


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A part of an item, and where it goes."""

    place: _StorageInfo
    wanted: ReadItem
    target: Tensor


def load(source: Source, metadata: Metadata, tensors: Mapping[str, Tensor], *, threads: int = 1) -> None:
    """Fill `tensors` in place, whatever the sharding. metadata: that of `source`, parsed and checked.

    Raises OSError, RuntimeError or ValueError for what does not fit, CheckpointError for what is not a tensor.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), metadata, is_coordinator=False)
    reads = [
        _Read(
            place=metadata.storage_data[item.storage_index], wanted=item, target=planner.resolve_tensor(item).detach()
        )
        for item in planner.create_local_plan().items
    ]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda run: _read_run(source, run), list(_runs(reads))):
            pass


def _runs(reads: Sequence[_Read]) -> Iterator[list[_Read]]:
    """Neighbours in a file, in their order there."""
    ordered = sorted(reads, key=lambda read: (read.place.relative_path, read.place.offset))
    for _, same in groupby(ordered, key=lambda read: (read.place.relative_path, read.place.offset // _RUN)):
        yield list(same)


def _read_run(source: Source, run: Sequence[_Read]) -> None:
    with source.open(run[0].place.relative_path) as file, torch.no_grad():
        for place, reads in groupby(run, key=lambda read: read.place):
            item = find_item(file, place.offset, place.length)
            for read in reads:
                if item is None:
                    _load_as_torch_does(source, file, read)
                elif read.target.numel():
                    _fill(file, item, read)


def _fill(file: File, item: Item, read: _Read) -> None:
    rows = _rows(item, read.wanted)
    if rows is None:
        storage = torch.empty(item.size, dtype=torch.uint8)
        file.read_into(_bytes_of(storage), item.offset)
        whole = storage[: item.size // item.dtype.itemsize * item.dtype.itemsize].view(item.dtype)
        found = whole.as_strided(item.shape, item.strides, item.first)
        read.target.copy_(_part(found, read.wanted))
        return
    offset, shape = rows
    target = read.target
    if target.shape != shape:
        raise ValueError(
            f"{read.wanted.storage_index.fqn}: {tuple(shape)} is stored where {tuple(target.shape)} is wanted"
        )
    direct = target.device.type == "cpu" and target.dtype == item.dtype and target.is_contiguous()
    if not direct or target.is_conj() or target.is_neg():
        target = torch.empty(shape, dtype=item.dtype, pin_memory=read.target.is_cuda)
    file.read_into(_bytes_of(target), offset)
    if target is not read.target:
        read.target.copy_(target)


def _rows(item: Item, wanted: ReadItem) -> tuple[int, torch.Size] | None:
    """Where the wanted part begins in the file, and its shape; None where it is not in one piece."""
    shape, offsets, lengths = item.shape, tuple(wanted.storage_offsets), tuple(wanted.lengths)
    if not item.is_contiguous or not len(shape) == len(offsets) == len(lengths) or lengths[1:] != shape[1:]:
        return None
    if any(o < 0 or o + n > whole for o, n, whole in zip(offsets, lengths, shape, strict=True)):
        return None
    skipped = item.first + (offsets[0] * prod(shape[1:]) if shape else 0)
    return item.offset + skipped * item.dtype.itemsize, torch.Size(lengths)


def _load_as_torch_does(source: Source, file: File, read: _Read) -> None:
    data = bytearray(read.place.length)
    file.read_into(memoryview(data), read.place.offset)
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Without torch's own words, which advise to trust the file.
        found = None
    if not isinstance(found, Tensor):
        raise CheckpointError(
            f"checkpoint {source.name} holds something that is not a tensor",
            why="loading it could run code of whoever wrote it",
            fix="find out who can write to the checkpoint folder and its S3 prefix",
        )
    read.target.copy_(_part(found, read.wanted))


def _part(tensor: Tensor, wanted: ReadItem) -> Tensor:
    for dim, (start, length) in enumerate(zip(wanted.storage_offsets, wanted.lengths, strict=True)):
        tensor = tensor.narrow(dim, start, length)
    return tensor


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
