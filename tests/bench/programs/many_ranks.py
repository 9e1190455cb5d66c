"""A checkpoint of many ranks: many_ranks.py FOLDER make|choose.

make: write one, as the ranks of an FSDP job would: a file each, with a row of every tensor. choose: what a start of the
job does with it before it loads anything, in one process: find the newest, verify every file, read the metadata.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from moorage.checkpoint.checkpointer import Checkpointer
from moorage.checkpoint.durable import FileFacts, digest, write_bytes
from moorage.checkpoint.layout import MANIFEST, METADATA, step_name
from moorage.checkpoint.manifest import Entry, Manifest
from moorage.checkpoint.metadata import write_metadata

RANKS, RANKS_PER_HOST = 4096, 8
NAMES = [
    f"{kind}/blocks.{number}.weight"
    for kind in ("model", "optimizer/exp_avg", "optimizer/exp_avg_sq")
    for number in range(8)
]
COLUMNS = 64
LENGTH = COLUMNS * torch.float32.itemsize


def make(folder: Path) -> None:
    checkpoint = folder / step_name(1)
    checkpoint.mkdir()
    files = {}
    for rank in range(RANKS):
        data = rank.to_bytes(4, "big") * (LENGTH * len(NAMES) // 4)
        (checkpoint / file_of(rank)).write_bytes(data)
        files[file_of(rank)] = entry(FileFacts(size=len(data), xxh3_128=digest(data)), rank)
    files[METADATA] = entry(write_bytes(checkpoint / METADATA, write_metadata(metadata())), 0)
    manifest = Manifest(
        step=1, world_size=RANKS, hosts=tuple(host_of(rank) for rank in range(RANKS)), strategy="fsdp", files=files
    )
    write_bytes(checkpoint / MANIFEST, manifest.to_bytes())


def metadata() -> Metadata:
    """Nothing in it is there twice, as nothing is in what the ranks send to the first."""
    places = {
        MetadataIndex(name, torch.Size([rank, 0]), rank): _StorageInfo(file_of(rank), place * LENGTH, LENGTH)
        for rank in range(RANKS)
        for place, name in enumerate(NAMES)
    }
    return Metadata(
        state_dict_metadata={name: tensor() for name in NAMES},
        planner_data={name: (name,) for name in NAMES},
        storage_data=places,
        storage_meta=StorageMeta(),
        version=CURRENT_DCP_VERSION,
    )


def tensor() -> TensorStorageMetadata:
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=torch.float32),
        size=torch.Size([RANKS, COLUMNS]),
        chunks=[ChunkStorageMetadata(offsets=torch.Size([r, 0]), sizes=torch.Size([1, COLUMNS])) for r in range(RANKS)],
    )


def file_of(rank: int) -> str:
    return f"0a1b2c3d-{rank:05d}.distcp"


def host_of(rank: int) -> str:
    return f"algo-{rank // RANKS_PER_HOST + 1}"


def entry(facts: FileFacts, rank: int) -> Entry:
    return Entry(size=facts.size, xxh3_128=facts.xxh3_128, host=host_of(rank))


def choose(folder: Path) -> None:
    checkpointer = Checkpointer(folder, rank=0, world_size=1, local_rank=0, host="algo-1")
    started = time.perf_counter()
    manifest = checkpointer.newest()
    assert manifest is not None
    stored = checkpointer.stored(manifest)
    taken = time.perf_counter() - started
    assert len(stored) == len(NAMES)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(f"chosen in {taken:.3f} s with {peak:.1f} MB")


{"make": make, "choose": choose}[sys.argv[2]](Path(sys.argv[1]))
