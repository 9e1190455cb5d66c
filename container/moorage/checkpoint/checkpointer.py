"""The checkpoints of one rank of a job: saved behind the training, verified before they are used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from moorage.checkpoint import retention
from moorage.checkpoint.ahead import Ahead
from moorage.checkpoint.group import USUAL, Group
from moorage.checkpoint.layout import MANIFEST, step_name
from moorage.checkpoint.loading import load
from moorage.checkpoint.manifest import JSON, Manifest, SaveInfo
from moorage.checkpoint.metadata import MetadataError, TensorFacts, read_metadata, tensor_facts
from moorage.checkpoint.other import Other, find_other
from moorage.checkpoint.resume import Resume
from moorage.checkpoint.saves import Outcome, Saves
from moorage.checkpoint.source import Folders, Source, exists, num_threads
from moorage.checkpoint.storage import Disk, Storage
from moorage.checkpoint.store import find_store
from moorage.errors import CheckpointError, MoorageError, describe

T = TypeVar("T")
Wanted = Callable[[Manifest, Mapping[str, TensorFacts]], Mapping[str, Tensor]]

__all__ = ["Checkpointer", "Outcome", "SaveInfo"]


class Checkpointer:
    """Saves and loads the checkpoints of one folder, or of another storage. Made on all ranks alike; the collective
    methods say so.

    A folder of each host's own and one that hosts share work the same: who shares it is found out.
    keep: committed checkpoints that stay, beside the best; keep_every: steps, one in so many stays for good.
    uploads: whether an agent uploads from the folder; None is when it leaves a mark. upload_bound: seconds that a file
    may wait for it without a warning, 0 is for ever. attempt: of the job, for the manifest.
    timeout: how long a rank waits for another, which includes the other's writing.
    """

    def __init__(
        self,
        folder: Path | Storage,
        *,
        rank: int,
        world_size: int,
        local_rank: int,
        host: str,
        keep: int = 2,
        keep_every: int = 0,
        uploads: bool | None = None,
        upload_bound: float = 0.0,
        attempt: int = 0,
        log: logging.Logger | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self._storage = Disk(folder) if isinstance(folder, Path) else folder
        self._log = log or logging.getLogger("moorage")
        self._group = Group(rank, world_size, timeout)
        self._store = find_store(self._storage, self._group, host=host, local_rank=local_rank)
        self._shelf = retention.Shelf(
            self._storage, retention.Rule(keep=keep, every=keep_every), self._log,
            agent=uploads if self._storage.path is not None else False, upload_bound=upload_bound,
            hosts={self._store.hosts[mate] for mate in self._store.mates},
        )  # fmt: skip
        self._saves = Saves(
            self._store, self._group, attempt=attempt, is_committed=self._is_committed, after=self._after_commit,
            log=self._log,
        )  # fmt: skip
        self._newest: int | None = None
        """Step of the newest checkpoint, None until they were looked at."""
        self._parsed: tuple[Manifest, Metadata] | None = None
        self._lock = threading.Lock()
        self._best = -1
        self._ahead: Ahead | None = None

    # Loading

    def newest(self, wanted: Wanted | None = None) -> Manifest | None:
        """The newest checkpoint that is whole among the hosts, then whole and verified on each. Collective.

        None when none was ever committed. Leftovers newer than it are removed, damaged ones moved aside, each with a
        line in the log. Raises CheckpointError when there are checkpoints and none can be used.
        wanted: the tensors to load, by the checkpoint and what it has stored. They are loaded while it is verified, and
        `ahead` has them; where that did not work out they hold anything, and are to be loaded.
        """
        self._saves.join()
        # From a disk the second to read a file finds it in the page cache; from S3 all would come twice at once.
        on_disk = self._storage.path is not None
        self._ahead = Ahead(partial(self._load_ahead, wanted)) if wanted is not None and on_disk else None
        resume = Resume(self._store, self._group, self._log, self._ahead)
        manifest = self._remember(resume.newest(), resume.metadata)
        self._newest = manifest.step if manifest else -1
        self._shelf.went_on_from(manifest.step if manifest else -1)
        return manifest

    def _load_ahead(self, wanted: Wanted, manifest: Manifest) -> Mapping[str, Tensor]:
        source = self._source(manifest)
        metadata = read_metadata(source, manifest.sizes)
        tensors = wanted(manifest, tensor_facts(metadata))
        load(source, metadata, tensors, threads=self._threads)
        return tensors

    def ahead(self, manifest: Manifest) -> Mapping[str, Tensor] | None:
        """What `newest` has loaded of this checkpoint, verified; None where it has to be loaded. Once."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        found = ahead.tensors(manifest)
        ahead.close()
        return found

    def at(self, step: int) -> Manifest | None:
        """The checkpoint of one step, whole and verified on every host; None when it is gone or damaged. Collective."""
        self._saves.join()
        resume = Resume(self._store, self._group, self._log)
        return self._remember(resume.whole(step), resume.metadata)

    def _remember(self, manifest: Manifest | None, metadata: Metadata | None) -> Manifest | None:
        if manifest is not None and metadata is not None:
            self._parsed = (manifest, metadata)
        return manifest

    def other(self, folder: Path) -> Other:
        """The newest checkpoint in a folder of another job, whole and verified on every host. Collective.

        Nothing is written there. Raises CheckpointError when there is none.
        """
        self._saves.join()
        return find_other(Folders(folder), self._group, self._store.hosts, self._log)

    def agreed(self, what: str, action: Callable[[], T]) -> T:
        """What `action` gives on all ranks alike. Collective.

        what: for the CheckpointError of the other ranks when one fails, or when the hosts differ.
        """
        self._saves.join()
        found = self._group.each(what, action)
        for rank, value in enumerate(found):
            if value != found[0]:
                raise CheckpointError(what, why=f"{self._store.hosts[rank]} holds something else than the first host")
        return found[0]

    def stored(self, manifest: Manifest, source: Source | None = None) -> dict[str, TensorFacts]:
        """The tensors in a checkpoint. source: where that of another job is. Raises CheckpointError."""
        return tensor_facts(self._metadata_of(manifest, source))

    def load(self, manifest: Manifest, tensors: Mapping[str, Tensor], source: Source | None = None) -> None:
        """Fill `tensors` in place from a checkpoint given by `newest`, `at` or `other`, whatever the sharding.
        Collective.

        Each rank may ask for other tensors, or none. Raises CheckpointError on all ranks when it fails on one.
        """

        def read() -> None:
            metadata = self._metadata_of(manifest, source)
            load(source or self._source(manifest), metadata, tensors, threads=self._threads)

        self._saves.join()
        self._group.each(f"checkpoint {manifest.name} cannot be loaded", read)

    @property
    def _threads(self) -> int:
        return num_threads(self._store.hosts.count(self._store.hosts[self._store.rank]))

    def _source(self, manifest: Manifest) -> Source:
        return self._storage.checkpoint(manifest.step)

    def _metadata_of(self, manifest: Manifest, source: Source | None) -> Metadata:
        """Parsed once for a checkpoint: that of many ranks takes a while."""
        if self._parsed is None or self._parsed[0] is not manifest:
            source = source or self._source(manifest)
            try:
                self._parsed = (manifest, read_metadata(source, manifest.sizes))
            except MetadataError as error:
                raise CheckpointError(f"the metadata of {source} cannot be used", why=str(error)) from None
        return self._parsed[1]

    # Saving

    def save(
        self,
        tensors: Mapping[str, Tensor],
        *,
        info: SaveInfo,
        objects: JSON,
        per_rank: JSON = None,
        best: bool = False,
        steady: frozenset[str] = frozenset(),
    ) -> bool:
        """Copy the tensors and go on; the files are written behind. Collective.

        steady: names of tensors that may be copied behind as well, since the caller calls `settle` before it changes
        any. Where one is changed all the same, the save fails, and from then on all are copied at once.
        Waits for a save still under way, which counts as pause. False when this step is committed already: it is never
        overwritten. `poll` tells how it ended. Raises CheckpointError, on all ranks, when the state cannot make a
        checkpoint.
        """
        return self._saves.save(
            tensors, info=info, objects=objects, per_rank=per_rank, best=best, steady=steady
        )  # fmt: skip

    def settle(self) -> None:
        """Call it in the thread that is about to change `steady` tensors of the last save, such as before a step of the
        optimizer: it waits until they are copied. Costs next to nothing when they are."""
        self._saves.settle()

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Plan the saves of such tensors and get the memory for them: the first then pauses no longer than the others.

        Collective. Worth calling once an optimizer has made its first step, since before that it has no state.
        Raises CheckpointError as `save` does.
        """
        self._saves.prepare(tensors)

    def _after_commit(self, step: int) -> None:
        self._newest = None if self._newest is None else step
        if self._store.is_leader:
            with self._lock:
                if self._best == step:
                    self._mark(step)
        try:
            self._prune()
        except USUAL as error:
            # The checkpoint is committed all the same.
            self._log.warning("old checkpoints stay for now: %s: %s", type(error).__name__, error)

    def _prune(self) -> None:
        look = self._shelf.look() if self._store.is_leader else None
        looks = [found for found in self._group.gather(look) if found is not None]
        if look is not None:
            self._shelf.warn(look)
            with self._lock:
                self._shelf.prune(looks)

    def poll(self) -> Outcome | None:
        """How a save ended that has not been told yet; None while there is none. Never waits."""
        return self._saves.poll()

    def wait(self) -> Outcome | None:
        """`poll`, once nothing is under way any more."""
        self._saves.join()
        return self.poll()

    # Keeping

    def mark_best(self, step: int) -> None:
        """Let the checkpoint of `step`, committed or on its way, be the best: it stays until another is."""
        if not self._store.is_leader:
            return
        with self._lock:
            self._best = step
            if self._is_committed(step):
                self._mark(step)

    def _is_committed(self, step: int) -> bool:
        """Seldom asked of the storage, where the answer may take a while."""
        if self._newest is not None and step >= self._newest:
            return step == self._newest
        return exists(self._storage.checkpoint(step), MANIFEST)

    def _mark(self, step: int) -> None:
        try:
            retention.mark_best(self._storage, step)
        except OSError as error:
            self._log.warning("%s cannot be marked as the best: %s", step_name(step), describe(error))
        except MoorageError as error:
            self._log.warning("%s cannot be marked as the best: %s", step_name(step), error)

    def prune(self) -> None:
        """Remove what need not stay; every commit does so by itself. Collective."""
        self._saves.join()
        self._prune()

    def close(self) -> None:
        """Wait for a save under way, then leave the group."""
        self._saves.join()
        self._group.close()
