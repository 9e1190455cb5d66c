"""One save behind the training: every rank's file, then the metadata, then the manifest, which makes it a checkpoint.

All hosts' files are on their disks before any host has a manifest. When anything fails on any rank, all undo what they
did, and the checkpoint before this one is as it was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from moorage import __version__
from moorage.checkpoint.copying import Copying
from moorage.checkpoint.durable import FileFacts, digest
from moorage.checkpoint.group import Group
from moorage.checkpoint.layout import BEST, MANIFEST, METADATA
from moorage.checkpoint.manifest import JSON, Entry, Manifest, SaveInfo
from moorage.checkpoint.metadata import write_metadata
from moorage.checkpoint.plan import Plan
from moorage.checkpoint.shard import Shard, Staging
from moorage.checkpoint.storage import write_bytes
from moorage.checkpoint.store import Store
from moorage.errors import MoorageError, describe


@dataclass(frozen=True, kw_only=True)
class Save:
    """All that one save needs, no part of which changes any more once it is copied. state: JSON of `objects` and
    `per_rank`.
    """

    info: SaveInfo
    state: str
    best: bool
    attempt: int
    shard_name: str
    plan: Plan
    staging: Staging
    copying: Copying


class Commit:
    """A save on its way. Collective: `run` is called on all ranks, in a thread of its own."""

    def __init__(self, save: Save, store: Store, group: Group, log: logging.Logger) -> None:
        self._save, self._store, self._group, self._log = save, store, group, log
        self._storage, self._step = store.storage, save.info.step
        self._written: list[str] = []
        self.size = 0

    def run(self) -> str:
        """Empty when the checkpoint is committed, else why it is not.

        Raises RuntimeError when a rank is gone. Everything then stays as it is: whether a host already counts on this
        checkpoint cannot be known, and the next start sorts it out.
        """
        reason = self._stages()
        if reason:
            self._undo()
        return reason

    def _stages(self) -> str:
        shard: Shard | None = None

        def write_shard() -> None:
            nonlocal shard
            self._save.copying.finish()
            if self._save.plan.items:
                name = self._save.shard_name
                self._written.append(name)
                with self._storage.writing(self._step, name) as file:
                    shard = self._save.staging.write(file, name, self._store.hosts[self._store.rank])

        if reason := self._everywhere(write_shard):
            return reason
        state = json.loads(self._save.state)
        shards = self._group.collect((shard, state["per_rank"]))
        made = self._make_manifest(shards, state["objects"]) if self._group.rank == 0 else None
        metadata, manifest, self.size, reason = self._group.share(made)
        if reason:
            return reason

        def write_metadata_file() -> None:
            if self._store.is_leader:
                self._put(METADATA, metadata)
                if self._save.best:
                    self._put(BEST, b"")

        def write_manifest() -> None:
            if self._store.is_leader:
                self._put(MANIFEST, manifest)
                self._storage.settle()

        return self._everywhere(write_metadata_file) or self._everywhere(write_manifest)

    def _everywhere(self, *actions: Callable[[], None]) -> str:
        """Do the actions on each rank. Why the first rank that failed did, or empty."""
        reason = ""
        try:
            for action in actions:
                action()
        except OSError as error:
            reason = f"{describe(error)} in {self._storage}"
        except MoorageError as error:
            reason = str(error)
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
        for rank, found in enumerate(self._group.gather(reason)):
            if found:
                return f"{found} on {self._store.hosts[rank]} (rank {rank})"
        return ""

    def _put(self, name: str, data: bytes) -> None:
        self._written.append(name)
        write_bytes(self._storage, self._step, name, data)

    def _make_manifest(
        self, parts: Sequence[tuple[Shard | None, JSON]], objects: JSON
    ) -> tuple[bytes, bytes, int, str]:
        """The metadata, the manifest, the bytes of all files, and why that cannot be made."""
        shards = [shard for shard, _ in parts]
        given = [value for _, value in parts]
        try:
            metadata = write_metadata(_metadata(self._save.plan, shards))
            facts = FileFacts(size=len(metadata), xxh3_128=digest(metadata))
            files = {shard.name: _entry(shard.facts, shard.host) for shard in shards if shard is not None}
            files[METADATA] = _entry(facts, self._store.hosts[0])
            manifest = Manifest(
                **{part.name: getattr(self._save.info, part.name) for part in dataclasses.fields(SaveInfo)},
                world_size=self._group.world_size,
                hosts=self._store.hosts,
                attempt=self._save.attempt,
                created=time.time(),
                versions={"moorage": __version__, "torch": torch.__version__, "python": platform.python_version()},
                objects=objects,
                per_rank=tuple(given) if any(value is not None for value in given) else (),
                files=files,
            )
            return metadata, manifest.to_bytes(), manifest.size, ""
        except (ValueError, TypeError, RecursionError) as error:
            return b"", b"", 0, f"the manifest cannot be written: {type(error).__name__}: {error}"

    def _undo(self) -> None:
        if self._store.is_leader:
            # First of all, on all hosts: from here on there is nothing that looks whole.
            self._discard([MANIFEST])
        self._group.gather(None)
        self._discard(self._written)
        self._group.gather(None)
        if self._store.is_leader:
            self._discard([])  # the folder, which on a disk that hosts share is empty only now

    def _discard(self, names: Sequence[str]) -> None:
        try:
            self._storage.discard(self._step, names)
        except OSError as error:
            self._log.warning("files of the failed save of step %d stay: %s", self._step, describe(error))
        except MoorageError as error:
            self._log.warning("files of the failed save of step %d stay: %s", self._step, error)


def _entry(facts: FileFacts, host: str) -> Entry:
    return Entry(size=facts.size, xxh3_128=facts.xxh3_128, host=host)


def _metadata(plan: Plan, shards: Sequence[Shard | None]) -> Metadata:
    assert plan.metadata is not None
    places = {
        item.index: _StorageInfo(shard.name, *place)
        for items, shard in zip(plan.by_rank, shards, strict=True)
        if shard is not None
        for item, place in zip(items, shard.places, strict=True)
    }
    return Metadata(
        state_dict_metadata=plan.metadata.state_dict_metadata,
        # Each name stands for itself: DCP's own tools ask for the path of every tensor.
        planner_data={name: (name,) for name in plan.metadata.state_dict_metadata},
        storage_data=places,
        storage_meta=StorageMeta(),
        version=CURRENT_DCP_VERSION,
    )
