"""Going on: the hosts compare what they hold, complete it from each other, verify it, and agree on one checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch.distributed.checkpoint.metadata import Metadata

from moorage.checkpoint.agree import Completion, Held, Transfer, Version, completion, look, versions
from moorage.checkpoint.ahead import Ahead
from moorage.checkpoint.durable import digest
from moorage.checkpoint.group import Group
from moorage.checkpoint.layout import MANIFEST, step_name
from moorage.checkpoint.manifest import LARGEST, Manifest, ManifestError
from moorage.checkpoint.metadata import MetadataError, read_metadata
from moorage.checkpoint.retention import mark_best
from moorage.checkpoint.source import num_threads, read_bytes, verify
from moorage.checkpoint.storage import write_bytes
from moorage.checkpoint.store import Store
from moorage.checkpoint.transfer import receive_file, send_file
from moorage.errors import CheckpointError, MoorageError, describe


class Resume:
    """One look for the newest checkpoint. Collective throughout: every rank gets the same answer.

    ahead: is told what is being verified, so that it may be loaded meanwhile.
    """

    def __init__(self, store: Store, group: Group, log: logging.Logger, ahead: Ahead | None = None) -> None:
        self._store, self._group, self._log, self._ahead = store, group, log, ahead
        self._place = store.storage
        self._unread = f"{self._place} cannot be read"
        self._held: dict[int, dict[int, Held]] = {}
        self.metadata: Metadata | None = None
        """That of the checkpoint found, where this rank is the one that checked it."""

    def newest(self) -> Manifest | None:
        """The newest checkpoint that is whole among the hosts, by now whole on each; None when none was ever committed.

        Raises CheckpointError when there are checkpoints and none can be used.
        """
        self._held = self._everything_held()
        refused: dict[int, str] = {}
        for version in versions(self._held):
            manifest, reason = self._try(version)
            if manifest is not None:
                self._clean(manifest.step)
                return manifest
            refused[version.step] = reason
            self._say(
                logging.WARNING,
                "checkpoint %s cannot be used: %s; trying the one before it",
                step_name(version.step),
                reason,
            )
        refused |= self._unreadable(refused)
        if refused:
            raise CheckpointError(
                f"none of the {len(refused)} checkpoints in {self._place} can be used",
                why="; ".join(
                    f"{step_name(step)}: {reason}" for step, reason in sorted(refused.items(), reverse=True)[:3]
                ),
                fix="restore one of them, or empty the folder to start from zero",
            )
        self._clean(-1)
        return None

    def whole(self, step: int) -> Manifest | None:
        """The checkpoint of one step, completed and verified; None when it is not there or cannot be used."""
        self._held = self._everything_held()
        for version in versions(self._held):
            if version.step == step:
                manifest, reason = self._try(version)
                if manifest is not None:
                    return manifest
                self._say(logging.WARNING, "checkpoint %s cannot be used: %s", step_name(step), reason)
        return None

    def _everything_held(self) -> dict[int, dict[int, Held]]:
        look_here = (lambda: look(self._place)) if self._store.is_leader else dict
        found: list[dict[int, Held]] = self._group.each(self._unread, look_here)
        return {leader: found[leader] for leader in self._store.all_leaders}

    def _try(self, version: Version) -> tuple[Manifest | None, str]:
        """The manifest, once every store holds all of its files, or why that cannot be."""
        data, manifest, reason = self._manifest_of(version)
        if manifest is None:
            return None, reason
        if self._ahead is not None:
            self._ahead.begin(manifest)
        problems = self._problems(manifest)
        if self._ahead is not None and problems[self._store.leader]:
            self._ahead.drop()
        plan = completion(manifest.files, problems, self._names())
        if plan.missing:
            return None, _listed(plan.missing)
        reason = self._complete(manifest, data, plan) or self._by_host(
            self._group.each(self._unread, lambda: self._unreadable_metadata(manifest))
        )
        return (None, reason) if reason else (manifest, "")

    def _unreadable_metadata(self, manifest: Manifest) -> str:
        try:
            if self._store.is_leader:
                self.metadata = read_metadata(self._place.checkpoint(manifest.step), manifest.sizes)
        except MetadataError as error:
            return f".metadata: {error}"
        return ""

    def _manifest_of(self, version: Version) -> tuple[bytes, Manifest | None, str]:
        source = version.holders[0]
        data, reason, failure = b"", "", ""
        if self._group.rank == source:
            try:
                data = read_bytes(self._place.checkpoint(version.step), MANIFEST, limit=LARGEST)
            except OSError as error:
                reason = describe(error)
            except MoorageError as error:
                failure = str(error)
        data, reason, failure = self._group.share((data, reason, failure), source)
        if failure:
            raise CheckpointError(self._unread, why=failure)
        try:
            return data, None if reason else Manifest.from_bytes(data), reason
        except ManifestError as error:
            return data, None, str(error)

    def _problems(self, manifest: Manifest) -> dict[int, dict[str, str]]:
        """By leader, the files of its store that are not whole, with why. The ranks of a store share the hashing."""
        mates, hosts = self._store.mates, self._store.hosts
        found = self._group.each(self._unread, lambda: verify(
            self._place.checkpoint(manifest.step), manifest.files, place=mates.index(self._group.rank),
            mates=len(mates), threads=num_threads(hosts.count(hosts[self._group.rank])),
        ))  # fmt: skip
        merged: dict[int, dict[str, str]] = {leader: {} for leader in self._store.all_leaders}
        for rank, part in enumerate(found):
            merged[self._store.leaders[rank]] |= part
        return merged

    def _complete(self, manifest: Manifest, data: bytes, plan: Completion) -> str:
        """Bring every store to hold everything. Why the checkpoint does not allow it, or empty.

        Raises CheckpointError when a store cannot be written: going back a step would mend nothing, and give up a
        checkpoint that is whole.
        """
        reason, failure = "", ""
        names = self._names()
        for transfer in plan.transfers:
            self._say(
                logging.INFO, "%s/%s: fetched by %s from %s, where it is whole", manifest.name, transfer.file,
                ", ".join(names[target] for target in transfer.targets), names[transfer.source],
            )  # fmt: skip
            # Those who failed go on, so that the others are not left waiting in the middle of a file.
            try:
                reason = self._transfer(manifest, transfer) or reason
            except OSError as error:
                failure = f"{transfer.file}: {describe(error)}"
        try:
            if not reason and not failure and self._store.is_leader:
                self._write_manifest(manifest, data)
        except OSError as error:
            failure = f"{MANIFEST}: {describe(error)}"
        self._raise_any(manifest, self._group.gather(failure))
        return self._by_host(self._group.gather(reason))

    def _raise_any(self, manifest: Manifest, failures: list[str]) -> None:
        if any(failures):
            raise CheckpointError(
                f"checkpoint {manifest.name} is whole among the hosts, but cannot be put together on each",
                why=self._by_host(failures),
                fix="give the checkpoint folder more room: every host holds all of it when it resumes",
            )

    def _transfer(self, manifest: Manifest, transfer: Transfer) -> str:
        entry = manifest.files[transfer.file]
        if self._group.rank == transfer.source:
            return send_file(self._place.checkpoint(manifest.step), transfer.file, entry, transfer.targets, self._group)
        if self._group.rank in transfer.targets:
            writing = self._place.writing(manifest.step, transfer.file)
            return receive_file(writing, transfer.file, entry, transfer.source, self._group)
        return ""

    def _write_manifest(self, manifest: Manifest, data: bytes) -> None:
        here = self._held[self._group.rank].get(manifest.step, Held())
        if not here.best and any(found[manifest.step].best for found in self._held.values() if manifest.step in found):
            mark_best(self._place, manifest.step)
        if here.manifest != digest(data):
            write_bytes(self._place, manifest.step, MANIFEST, data)

    def _by_host(self, reasons: list[str]) -> str:
        found = {self._store.hosts[rank]: reason for rank, reason in enumerate(reasons) if reason}
        return "; ".join(f"on {host}: {reason}" for host, reason in found.items())

    def _unreadable(self, refused: Mapping[int, str]) -> dict[int, str]:
        """Steps with a manifest on some store that no store can read."""
        return {
            step: item.reason
            for found in self._held.values()
            for step, item in found.items()
            if item.committed and not item.manifest and step not in refused
        }

    def _clean(self, chosen: int) -> None:
        """Put away what is newer than the step chosen: it cannot become whole, and its steps will come again."""
        steps = sorted({step for found in self._held.values() for step in found if step > chosen})
        reasons = {}
        for step in steps:
            held = {leader: found[step] for leader, found in self._held.items() if step in found}
            was_committed = any(item.committed for item in held.values())
            for leader, item in held.items():
                if item.reason:
                    reasons[step] = item.reason
                    if item.committed:
                        self._say(
                            logging.WARNING, "%s on %s: %s", step_name(step), self._store.hosts[leader], item.reason
                        )
            if not was_committed:
                self._say(
                    logging.WARNING,
                    "%s is left over from a save that did not end: %s; removed",
                    step_name(step),
                    reasons[step],
                )
            if self._store.is_leader and step in self._held[self._group.rank]:
                self._put_away(step, was_committed)
        self._group.gather(None)

    def _put_away(self, step: int, was_committed: bool) -> None:
        name = step_name(step)
        try:
            if was_committed:
                aside = self._place.move_aside(step)
                self._log.warning("%s was moved aside to %s", name, aside or "nowhere: it is being uploaded")
            elif not self._place.remove(step):
                self._log.warning("%s is being uploaded: it is removed later", name)
        except OSError as error:
            self._log.warning("%s cannot be put away: %s", name, describe(error))
        except MoorageError as error:
            self._log.warning("%s cannot be put away: %s", name, error)

    def _names(self) -> dict[int, str]:
        return {leader: self._store.hosts[leader] for leader in self._store.all_leaders}

    def _say(self, level: int, text: str, *values: object) -> None:
        if self._group.rank == 0:
            self._log.log(level, text, *values)


def _listed(reasons: Mapping[str, str]) -> str:
    shown = [f"{name}: {reason}" for name, reason in list(reasons.items())[:3]]
    return "; ".join(shown) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
