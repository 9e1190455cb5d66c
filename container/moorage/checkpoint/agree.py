"""Choosing the checkpoint to go on from: pure functions from what the hosts hold to what to do. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moorage.checkpoint.durable import FileFacts, digest
from moorage.checkpoint.layout import BEST, MANIFEST
from moorage.checkpoint.manifest import ManifestError, read_manifest
from moorage.checkpoint.source import Place, exists


@dataclass(frozen=True, kw_only=True)
class Held:
    """What one store holds of a step. manifest: the digest of its manifest, empty without a usable one."""

    manifest: str = ""
    attempt: int = 0
    best: bool = False
    reason: str = ""
    """Why the manifest cannot be used."""
    committed: bool = False
    """There is a manifest, usable or not."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One content of a step's manifest, and the leaders whose store holds it, first ones first."""

    step: int
    manifest: str
    holders: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A file that `source` sends to `targets`, leaders all."""

    file: str
    source: int
    targets: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """transfers: in the order in which all go through them. missing: files that no store holds whole, with why."""

    transfers: tuple[Transfer, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def look(place: Place) -> dict[int, Held]:
    """What a place holds, by step. Raises OSError."""
    found = {}
    for step in place.steps():
        checkpoint = place.checkpoint(step)
        best = exists(checkpoint, BEST)
        try:
            manifest, data = read_manifest(checkpoint)
        except FileNotFoundError:
            found[step] = Held(reason=f"it was never committed (no {MANIFEST})")
        except ManifestError as error:
            found[step] = Held(reason=str(error), committed=True)
        else:
            found[step] = Held(manifest=digest(data), attempt=manifest.attempt, best=best, committed=True)
    return found


def versions(held: Mapping[int, Mapping[int, Held]]) -> list[Version]:
    """What could be gone on from, the best first. held: by leader, by step.

    By the number of the step, never by a clock. Should stores disagree about a step, the later attempt comes first,
    then what more of them hold.
    """
    holders: dict[tuple[int, int, str], list[int]] = {}
    for leader, found in sorted(held.items()):
        for step, item in found.items():
            if item.manifest:
                holders.setdefault((step, item.attempt, item.manifest), []).append(leader)
    order = sorted(holders, key=lambda key: (key[0], key[1], len(holders[key]), key[2]), reverse=True)
    return [Version(step=key[0], manifest=key[2], holders=tuple(holders[key])) for key in order]


def completion(
    files: Mapping[str, FileFacts], problems: Mapping[int, Mapping[str, str]], names: Mapping[int, str]
) -> Completion:
    """How every store gets every file. problems: by leader, why a file is not whole there. names: of the leaders.

    The sending is spread over the stores that hold a file, by bytes.
    """
    sent = dict.fromkeys(problems, 0)
    transfers, missing = [], {}
    for name, facts in sorted(files.items()):
        whole = [leader for leader, found in problems.items() if not found.get(name)]
        lacking = tuple(leader for leader, found in sorted(problems.items()) if found.get(name))
        if not whole:
            missing[name] = _say({names[leader]: problems[leader][name] for leader in lacking})
        elif lacking:
            source = min(whole, key=lambda leader: (sent[leader], leader))
            sent[source] += facts.size * len(lacking)
            transfers.append(Transfer(file=name, source=source, targets=lacking))
    return Completion(transfers=tuple(transfers), missing=missing)


def _say(reasons: Mapping[str, str]) -> str:
    if len(set(reasons.values())) == 1:
        [reason] = set(reasons.values())
        return reason if len(reasons) == 1 else f"{reason} on all hosts"
    return ", ".join(f"{reason} on {host}" for host, reason in reasons.items())
