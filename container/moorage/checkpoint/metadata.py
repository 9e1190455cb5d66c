"""DCP's `.metadata`, read without trusting who wrote it.

It is a pickle, so loading it the usual way runs whatever code its author chose. Here every global in it becomes an
inert stand-in that only remembers its arguments; the real objects are built from those, one checked field at a time.
Shapes, chunks and places must fit each other and the files, so that what passes here can be loaded.
"""

from __future__ import annotations

import gc
import io
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from moorage.checkpoint.layout import METADATA, is_data_name
from moorage.checkpoint.source import Source, read_bytes
from moorage.errors import CheckpointError, describe

T = TypeVar("T")

LARGEST = 1 << 30
"""Bytes of `.metadata` that are read at most; a chunk takes about 200."""

_DCP = "torch.distributed.checkpoint.metadata"
_RECORDS = frozenset(
    {
        (_DCP, "Metadata"),
        (_DCP, "MetadataIndex"),
        (_DCP, "TensorStorageMetadata"),
        (_DCP, "TensorProperties"),
        (_DCP, "ChunkStorageMetadata"),
        (_DCP, "StorageMeta"),
        (_DCP, "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("pathlib", "PosixPath"),
        # How Python 3.11.0 to 3.11.3 pickle a member of an enum.
        ("builtins", "getattr"),
    }
)
_MAX_DIMENSIONS = 64


class MetadataError(ValueError):
    """`.metadata` that cannot be used; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """A tensor as a checkpoint holds it: its global shape."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class _Record:
    """An inert stand-in for any global: calling it, making one, or setting its state only remembers what was given.

    Of what there is one for each shard, the checked object is made at once, and remembered instead.
    """

    __slots__ = ("args", "kind", "state")
    state: Any

    def __init__(self, kind: str, args: tuple[Any, ...]) -> None:
        self.kind, self.args, self.state = kind, args, None

    def __setstate__(self, state: Any) -> None:
        make = _MAKERS.get(self.kind)
        if make is None:
            self.state = state
            return
        self.state = make(_typed(state, dict))
        # Hundreds of bytes a shard, and the unpickler lets go of none before its end.
        state.clear()


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._sizes: dict[Any, torch.Size] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) not in _RECORDS:
            raise MetadataError(f"it asks for {module}.{name}, which has no place in it")
        sizes = self._sizes

        def new(cls: type, *args: Any) -> _Record:
            return _Record(name, args)

        def new_size(cls: type, values: Any) -> torch.Size:
            # Most shards have a size and an offset that others have too.
            return sizes.get(values) or sizes.setdefault(values, _size(values))

        # A class of its own for each, since NEWOBJ wants a type and whatever is done to it must not outlive this file.
        return type(name, (), {"__new__": new_size if name == "Size" else new, "__slots__": ()})

    def persistent_load(self, pid: Any) -> Any:
        raise MetadataError("it refers to something outside itself")


def parse_metadata(data: bytes, sizes: Mapping[str, int]) -> Metadata:
    """The metadata in `data`. sizes: bytes of each file that it may point into. Raises MetadataError."""
    try:
        with _without_collections():
            metadata = _metadata(_Unpickler(data).load())
    except MetadataError:
        raise
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError,
            ImportError, OverflowError, RecursionError, MemoryError) as error:  # fmt: skip
        raise MetadataError(f"it is not what DCP writes ({type(error).__name__}: {error!s:.120})") from None
    _check(metadata, sizes)
    return metadata


@contextmanager
def _without_collections() -> Iterator[None]:
    """Looking for cycles among ever more shards takes twice as long as reading them, and finds none."""
    usual = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if usual:
            gc.enable()


def _state(record: Any, kind: str) -> dict[str, Any]:
    if not isinstance(record, _Record) or record.kind != kind or record.args or not isinstance(record.state, dict):
        raise MetadataError(f"a {kind} was expected")
    return record.state


def _made(record: Any, kind: type[T]) -> T:
    if not isinstance(record, _Record) or record.args or type(record.state) is not kind:
        raise MetadataError(f"a {kind.__name__} was expected")
    return record.state


def _metadata(raw: Any) -> Metadata:
    state = _state(raw, "Metadata")
    tensors = _typed(state["state_dict_metadata"], dict)
    storage = _typed(state["storage_data"], dict)
    return Metadata(
        state_dict_metadata={_typed(name, str): _tensor(value) for name, value in tensors.items()},
        storage_data={_made(index, MetadataIndex): _made(place, _StorageInfo) for index, place in storage.items()},
        storage_meta=StorageMeta(),
        version=CURRENT_DCP_VERSION,
    )


def _tensor(record: Any) -> TensorStorageMetadata:
    # BytesStorageMetadata is not among the records: such an item would be unpickled freely on load.
    state = _state(record, "TensorStorageMetadata")
    properties = state["properties"]
    if not isinstance(properties, _Record) or properties.kind != "TensorProperties":
        raise MetadataError("TensorProperties were expected")
    dtype = _typed(properties.state, tuple)[0]
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=_typed(dtype, torch.dtype)),
        size=_typed(state["size"], torch.Size),
        chunks=[_made(chunk, ChunkStorageMetadata) for chunk in _typed(state["chunks"], list)],
    )


def _chunk(state: dict[Any, Any]) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(
        offsets=_typed(state["offsets"], torch.Size), sizes=_typed(state["sizes"], torch.Size)
    )  # fmt: skip


def _index(state: dict[Any, Any]) -> MetadataIndex:
    hint = state.get("index")
    offset = state.get("offset")
    return MetadataIndex(
        _typed(state["fqn"], str),
        None if offset is None else _typed(offset, torch.Size),
        None if hint is None else _typed(hint, int),
    )


def _place(state: dict[Any, Any]) -> _StorageInfo:
    if state.get("transform_descriptors"):
        raise MetadataError("it asks for transformed streams")
    name = _typed(state["relative_path"], str)
    if not is_data_name(name):
        raise MetadataError(f"it points to {name!r:.80}, which is not a file of the checkpoint")
    return _StorageInfo(name, _typed(state["offset"], int), _typed(state["length"], int))


_MAKERS: dict[str, Callable[[dict[Any, Any]], Any]] = {
    "ChunkStorageMetadata": _chunk,
    "MetadataIndex": _index,
    "_StorageInfo": _place,
}


def _size(values: Any) -> torch.Size:
    if len(_typed(values, tuple)) > _MAX_DIMENSIONS:
        raise MetadataError(f"{len(values)} dimensions are too many")
    if not all(type(value) is int and 0 <= value < 1 << 62 for value in values):
        raise MetadataError(f"{values!r:.80} is not a shape")
    return torch.Size(values)


def _typed(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise MetadataError(f"a {kind.__name__} was expected, not a {type(value).__name__}")
    return value


def _check(metadata: Metadata, sizes: Mapping[str, int]) -> None:
    stored: dict[tuple[str, torch.Size | None], int] = {}
    for index, place in metadata.storage_data.items():
        end = place.offset + place.length
        if place.relative_path not in sizes or not 0 <= place.offset <= end <= sizes[place.relative_path]:
            raise MetadataError(f"{index.fqn!r:.80} points outside the files of the checkpoint")
        stored[index.fqn, index.offset] = place.length
    check_coverage(metadata)
    for name, tensor in _tensors(metadata).items():
        for chunk in tensor.chunks:
            # So no shape can ask for more memory than there are bytes in the files.
            needed = math.prod(chunk.sizes) * tensor.properties.dtype.itemsize
            if stored.get((name, chunk.offsets), -1) < needed:
                raise MetadataError(f"{name!r:.80} has a chunk that is not stored, or shorter than its shape")


def check_coverage(metadata: Metadata) -> None:
    """Raises MetadataError for a tensor whose chunks do not make it up."""
    for name, tensor in _tensors(metadata).items():
        volume = 0
        for chunk in tensor.chunks:
            if not len(chunk.offsets) == len(chunk.sizes) == len(tensor.size):
                raise MetadataError(f"{name!r:.80} has a chunk of another number of dimensions")
            if any(o + s > whole for o, s, whole in zip(chunk.offsets, chunk.sizes, tensor.size, strict=True)):
                raise MetadataError(f"{name!r:.80} has a chunk outside its shape {tuple(tensor.size)}")
            volume += math.prod(chunk.sizes)
        if volume != math.prod(tensor.size) or not tensor.chunks or not _are_apart(tensor.chunks):
            raise MetadataError(f"{name!r:.80} of shape {tuple(tensor.size)} is not covered by its chunks")


def _are_apart(chunks: Sequence[ChunkStorageMetadata]) -> bool:
    """Whether no two of them, all of the same number of dimensions, have an element in common.

    In the order in which they begin along one dimension, each is compared with those that reach as far: along the one
    in which they begin at most places there are few.
    """
    chunks = [chunk for chunk in chunks if math.prod(chunk.sizes)]
    dims = range(len(chunks[0].sizes) if len(chunks) > 1 else 0)
    along = max(dims, key=lambda dim: len({chunk.offsets[dim] for chunk in chunks}), default=None)
    if along is None:
        return True
    reaching: list[ChunkStorageMetadata] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets[along]):
        reaching = [one for one in reaching if one.offsets[along] + one.sizes[along] > chunk.offsets[along]]
        if any(_meet(chunk, one) for one in reaching):
            return False
        reaching.append(chunk)
    return True


def _meet(one: ChunkStorageMetadata, other: ChunkStorageMetadata) -> bool:
    places = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    return all(a < b + d and b < a + c for a, c, b, d in places)


def _tensors(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    return {name: t for name, t in metadata.state_dict_metadata.items() if isinstance(t, TensorStorageMetadata)}


def write_metadata(metadata: Metadata) -> bytes:
    """As DCP writes it, so that a plain FileSystemReader reads it."""
    return pickle.dumps(metadata)


def read_metadata(checkpoint: Source, sizes: Mapping[str, int]) -> Metadata:
    """The metadata of a checkpoint whose files have these sizes. Raises MetadataError."""
    try:
        data = read_bytes(checkpoint, METADATA, limit=LARGEST)
    except OSError as error:
        raise MetadataError(f"it cannot be read: {describe(error)}") from None
    return parse_metadata(data, sizes)


def tensor_facts(metadata: Metadata) -> dict[str, TensorFacts]:
    return {
        name: TensorFacts(shape=tuple(tensor.size), dtype=tensor.properties.dtype)
        for name, tensor in _tensors(metadata).items()
    }


def facts_of(name: str, stored: Mapping[str, TensorFacts]) -> TensorFacts:
    """Raises CheckpointError for a tensor that the manifest counts on and the metadata does not have."""
    if name not in stored:
        raise CheckpointError(f"the checkpoint's manifest refers to a tensor {name!r:.200} that it does not hold")
    return stored[name]


def new_tensor(name: str, stored: Mapping[str, TensorFacts]) -> Tensor:
    """Memory on the CPU for a tensor of the checkpoint. Raises CheckpointError when it has none of that name."""
    facts = facts_of(name, stored)
    return torch.empty(facts.shape, dtype=facts.dtype)
