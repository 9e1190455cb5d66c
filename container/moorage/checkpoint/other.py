"""The checkpoint of another job, to begin with: read, and never written to, since a channel is read-only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage.checkpoint.durable import digest
from moorage.checkpoint.group import Group
from moorage.checkpoint.layout import step_name, step_of, steps
from moorage.checkpoint.manifest import Manifest, ManifestError, read_manifest
from moorage.checkpoint.metadata import MetadataError, read_metadata
from moorage.checkpoint.source import Place, Source, num_threads, verify
from moorage.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Other:
    """A checkpoint that is whole on every host, and where its files are."""

    manifest: Manifest
    source: Source


def holds_checkpoints(folder: Path) -> bool:
    """Whether this is a checkpoint, or a folder of some. Raises OSError."""
    return step_of(folder.name) is not None or bool(steps(folder))


def find_other(place: Place, group: Group, hosts: Sequence[str], log: logging.Logger) -> Other:
    """The newest checkpoint there that every host has whole. Collective.

    hosts: by rank; those of one host share the hashing. Raises CheckpointError when there is none, with the reasons.
    """
    mates = [rank for rank, host in enumerate(hosts) if host == hosts[group.rank]]
    found = group.each(f"{place} cannot be read", lambda: _manifests(place))
    refused: dict[int, str] = {}
    for step in sorted({step for held in found for step in held}, reverse=True):
        checkpoint = place.checkpoint(step)
        reasons = [_disagreement(held.get(step), found[0].get(step)) for held in found]
        if not any(reasons):
            reasons = group.gather(_problem(checkpoint, mates.index(group.rank), len(mates)))
        if not any(reasons):
            manifests = group.each(f"{checkpoint} cannot be read", lambda at=checkpoint: read_manifest(at)[0])  # type: ignore[misc]
            return Other(manifest=manifests[group.rank], source=checkpoint)
        refused[step] = "; ".join(
            f"on {hosts[rank]}: {reason}" for rank, reason in enumerate(reasons) if reason
        )  # fmt: skip
        if group.rank == 0:
            log.warning("%s, to begin with, cannot be used: %s", checkpoint, refused[step])
    listed = "; ".join(f"{step_name(step)}: {reason}" for step, reason in list(refused.items())[:3])
    raise CheckpointError(
        f"no checkpoint in {place}, which warm_start names, can be used",
        why=listed or "none was ever committed there",
        fix="moorage inspect shows what is whole; every host needs all of it: a channel that is not sharded",
    )


def _manifests(place: Place) -> dict[int, str]:
    """By step: the digest of a manifest, or why it cannot be used after a space."""
    found = {}
    candidates = place.steps()
    for step in candidates:
        try:
            found[step] = digest(read_manifest(place.checkpoint(step))[1])
        except FileNotFoundError:
            if len(candidates) == 1:
                found[step] = " it was never committed (no manifest)"
        except ManifestError as error:
            found[step] = f" {error}"
    return found


def _disagreement(held: str | None, first: str | None) -> str:
    if held is None:
        return "it is not there"
    if held.startswith(" "):
        return held[1:]
    return "" if held == first or first is None or first.startswith(" ") else "it is another one than on the first host"


def _problem(checkpoint: Source, place: int, mates: int) -> str:
    """Why the files of this rank's part are not whole, or empty."""
    try:
        manifest, _ = read_manifest(checkpoint)
        found = verify(checkpoint, manifest.files, place=place, mates=mates, threads=num_threads(mates))
        if found:
            return "; ".join(f"{name}: {reason}" for name, reason in list(found.items())[:3])
        if place == 0:
            read_metadata(checkpoint, manifest.sizes)
    except MetadataError as error:
        return f".metadata: {error}"
    except (ManifestError, FileNotFoundError) as error:
        return str(error)
    return ""
