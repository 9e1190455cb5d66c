"""Which checkpoints stay. Deleting one here deletes it in S3 too: the platform's agent follows. No torch here.

Hosts that share no disk each hold a part of a checkpoint and have an agent of their own, so they compare what they hold
and what is uploaded before any of them deletes its part: `look` on each, then `prune` with the looks of all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moorage.checkpoint import uploads
from moorage.checkpoint.layout import (
    BEST,
    IGNORE,
    MANIFEST,
    METADATA,
    UPLOADED,
    UPLOADING,
    is_data_name,
    is_uploading,
    step_name,
)
from moorage.checkpoint.manifest import ManifestError, read_manifest
from moorage.checkpoint.storage import Storage, committed, write_bytes
from moorage.errors import MoorageError, describe


def mark_best(storage: Storage, step: int) -> None:
    """Let the checkpoint of `step`, committed here, be the best from now on. Raises as Storage does."""
    write_bytes(storage, step, BEST, b"")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """keep: newest checkpoints that stay. every: steps; of those between two multiples of it the first stays for good.

    A save by the clock seldom meets a multiple, hence the first one from there on. 0 is none.
    """

    keep: int = 2
    every: int = 0


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one folder holds of a committed checkpoint. whole: all its files. own: those that were written here.

    By their sizes: contents are verified when a job goes on from them. uploaded: all that is here is in S3.
    begun: some of it is, or on its way.
    """

    whole: bool
    own: bool
    uploaded: bool = False
    begun: bool = False
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one folder holds, by step. agent: whether one uploads from it. error: why it cannot be read, or empty.

    waits, seconds: the file that has waited longest for the agent, and how long.
    """

    parts: Mapping[int, Part] = field(default_factory=dict)
    agent: bool = False
    waits: str = ""
    seconds: float = 0.0
    error: str = ""


def complete(looks: Collection[Look]) -> list[int]:
    """The committed steps whose files are all there, on one folder or each on its own; oldest first."""
    found = sorted({step for look in looks for step in look.parts})
    return [
        step
        for step in found
        if any(step in look.parts and look.parts[step].whole for look in looks)
        or all(step in look.parts and look.parts[step].own for look in looks)
    ]


def staying(looks: Collection[Look], rule: Rule, restored: int = -1) -> set[int]:
    """The steps that stay: the newest, the newest marked best, and those kept for good.

    Where an agent uploads, S3 is to have one at any time, too: the newest that is uploaded from all hosts stays, with
    the best before it, until a newer one is. So does the one that comes next, or a slow agent would lose each before
    it is through with it. restored: the step this job went on from; it may have come from S3, where nothing marks it.
    """
    here = complete(looks)

    def any_of(what: str, among: Iterable[int]) -> list[int]:
        return [step for step in among if any(step in look.parts and getattr(look.parts[step], what) for look in looks)]

    best = any_of("best", here)
    stay = {*here[-rule.keep :], *best[-1:], *_kept_for_good(here, rule.every)}
    if any(look.agent for look in looks):
        uploaded = [step for step in here if all(look.parts[step].uploaded for look in looks if step in look.parts)]
        newest = max(uploaded, default=-1)
        for safe in {newest, max(newest, restored)} & set(here):
            stay |= {safe, *[step for step in best if step <= safe][-1:]}
        later = [step for step in here if step > max(newest, restored)]
        stay |= {*(any_of("begun", later) or later)[:1]}
    return stay


def _kept_for_good(here: Sequence[int], every: int) -> set[int]:
    first: dict[int, int] = {}
    for step in here if every else ():
        if step >= every:
            first.setdefault(step // every, step)
    return set(first.values())


class Shelf:
    """The checkpoints of one storage. hosts: those that write to it. agent: whether one uploads from it; None is when
    it leaves a mark. upload_bound: seconds after which a file that waits for it is worth a warning; 0 is never.

    What is whole or uploaded stays so: it is looked at once, since each look is made beside the training.
    """

    def __init__(
        self,
        storage: Storage,
        rule: Rule,
        log: logging.Logger,
        *,
        hosts: Collection[str] = (),
        agent: bool | None = None,
        upload_bound: float = 0.0,
    ) -> None:
        self._storage, self._rule, self._log, self._hosts = storage, rule, log, frozenset(hosts)
        self._agent, self._marks = agent, False
        self._lag = uploads.Lag(upload_bound, log)
        self._settled: dict[int, Part] = {}
        self._tidied: set[int] = set()
        self._restored = -1

    def went_on_from(self, step: int) -> None:
        """The job has looked for the checkpoint to go on from, and put away what was newer. -1: there was none."""
        self._restored = step
        self._settled.clear()
        self._tidied.clear()

    def look(self) -> Look:
        """Never raises: what other hosts wait for has to come."""
        oldest: tuple[float, str] | None = None
        parts = {}
        try:
            for step, names in committed(self._storage).items():
                part, times = self._part(step, names)
                parts[step] = part
                if step > self._restored:
                    waits = [(changed, f"{step_name(step)}/{name}") for name, changed in uploads.waiting(times).items()]
                    oldest = min([*waits, *([oldest] if oldest else [])], default=None)
        except OSError as error:
            return Look(error=f"{self._storage}: {describe(error)}")
        except MoorageError as error:
            return Look(error=str(error))
        agent = self._marks if self._agent is None else self._agent
        since, name = oldest or (0.0, "")
        return Look(parts=parts, agent=agent, waits=name, seconds=time.time() - since if name else 0.0)

    def _part(self, step: int, names: Collection[str]) -> tuple[Part, uploads.Listing]:
        known = self._settled.get(step)
        best = BEST in names
        if known and known.own and known.uploaded:
            return Part(whole=known.whole, own=True, uploaded=True, begun=True, best=best), {}
        self._marks = self._marks or uploads.has_marks(names)
        # Asking for the time of every file is worth it only where an agent may be.
        times = uploads.times(self._storage.listing(step)) if self._marks or self._agent else {}
        whole, own = (known.whole, known.own) if known and known.own else _sizes(self._storage, step, self._hosts)
        uploaded, begun = uploads.is_uploaded(times), uploads.has_marks(times)
        part = Part(whole=whole, own=own, uploaded=uploaded, begun=begun, best=best)
        self._settled[step] = part
        return part, times

    def prune(self, looks: Collection[Look]) -> list[int]:
        """Remove what need not stay, and say so. The steps of the committed checkpoints that are gone.

        looks: of all folders of the job, this one included. Whatever is newer than the newest complete step is left
        alone: it may be on its way. So is a checkpoint from which the agent is uploading, until the next time. An error
        is logged, since training can go on.
        """
        gone: list[int] = []
        here = complete(looks)
        if errors := [look.error for look in looks if look.error]:
            self._log.warning("old checkpoints stay for now: %s", "; ".join(errors))
        if errors or not here:
            return gone
        stay = staying(looks, self._rule, self._restored)
        try:
            old = [step for step in self._storage.steps() if step < here[-1] and step not in stay]
            gone = [step for step in old if self._remove(step, here)]
            for step in stay - self._tidied:
                self._tidy(step)
            for step, names in self._storage.aside().items():
                for name in names:
                    # It was kept to be looked at until training passed its step again.
                    if step <= here[-1] and self._storage.remove_aside(name):
                        self._log.info("%s, moved aside as damaged, was removed", name)
        except OSError as error:
            self._log.warning("old checkpoints in %s cannot be removed: %s", self._storage, describe(error))
        except MoorageError as error:
            self._log.warning("old checkpoints stay for now: %s", error)
        return gone

    def warn(self, look: Look) -> None:
        """Say when the agent of this folder falls behind."""
        if look.agent:
            self._lag.tell(look.waits, look.seconds)

    def _remove(self, step: int, here: Collection[int]) -> bool:
        """Whether a committed checkpoint is gone."""
        was_committed = MANIFEST in self._storage.names(step)
        if not self._storage.remove(step):
            return False
        self._settled.pop(step, None)
        if not was_committed:
            self._log.info("%s was never committed: removed", step_name(step))
        elif step not in here:
            self._log.warning("%s lacked some of its files: removed", step_name(step))
        return was_committed

    def _tidy(self, step: int) -> None:
        try:
            names = self._storage.names(step)
        except FileNotFoundError:
            return
        if is_uploading(names):
            return
        if strays := _strays(self._storage, step, names):
            self._storage.discard(step, strays)
        self._tidied.add(step)


def _sizes(storage: Storage, step: int, hosts: Collection[str]) -> tuple[bool, bool]:
    """Whether all files of a checkpoint are here, and all that these hosts wrote."""
    try:
        manifest, _ = read_manifest(storage.checkpoint(step))
    except (FileNotFoundError, ManifestError):
        return False, False
    here = storage.listing(step)
    lacking = [name for name, entry in manifest.files.items() if name not in here or here[name].size != entry.size]
    return not lacking, not any(name == METADATA or manifest.files[name].host in hosts for name in lacking)


def _strays(storage: Storage, step: int, names: Collection[str]) -> list[str]:
    """Files of another attempt at the same step, which the manifest does not name."""
    try:
        manifest, _ = read_manifest(storage.checkpoint(step))
    except (FileNotFoundError, ManifestError):
        return []
    files = {name: name.removesuffix(UPLOADED).removesuffix(UPLOADING).removesuffix(IGNORE) for name in names}
    return [name for name, file in files.items() if is_data_name(file) and file not in manifest.files]
