"""What checkpoints there are, and whether they are whole; for `moorage inspect`. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from moorage.checkpoint import uploads
from moorage.checkpoint.layout import BEST, MANIFEST, METADATA, UPLOADED, is_data_name, step_name, step_of
from moorage.checkpoint.manifest import Manifest, ManifestError, read_manifest
from moorage.checkpoint.opening import open_s3
from moorage.checkpoint.source import Source, num_threads, verify
from moorage.checkpoint.storage import Disk, Seen, Storage
from moorage.contract.s3 import SCHEME, Address
from moorage.errors import ConfigError, describe

Tell = Callable[[str, int, int], None]
"""Called with the name of a checkpoint, and how many of its bytes are verified, out of how many."""

MISSING = "missing"


class State(StrEnum):
    """WHOLE: every file is as it was written. PART: every file of some hosts is, and none of the others' is here.

    DAMAGED: committed, and something is missing or changed. INCOMPLETE: never committed.
    """

    WHOLE = "whole"
    PART = "part"
    DAMAGED = "damaged"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One checkpoint. size: bytes that are here. hosts: those whose files are whole here. problems: by file, why not.

    manifest: None where it cannot be read. uploaded: files that are in S3, None where no agent left a mark.
    """

    step: int
    state: State
    size: int
    files: int
    problems: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    manifest: Manifest | None = None
    best: bool = False
    uploaded: int | None = None

    def counts_for(self, host: str) -> bool:
        """Whether a job can go on from it: alone, or with what the hosts other than `host` hold."""
        return self.state is State.WHOLE or (self.state is State.PART and host in self.hosts)


@dataclass(frozen=True, kw_only=True)
class Report:
    """checkpoints: the newest first. aside: those moved aside as damaged. verified: by hash, not by size alone."""

    folder: str
    verified: bool
    checkpoints: tuple[Found, ...]
    aside: tuple[str, ...] = ()

    def exit_code(self, host: str = "") -> int:
        """0: what was committed is whole. 1: not all of it is. 2: none that a job can go on from.

        host: whose own folder this is, so that the files of other hosts are not looked for.
        """
        committed = [found for found in self.checkpoints if found.state is not State.INCOMPLETE]
        usable = [found for found in committed if found.counts_for(host)]
        return 2 if not usable else int(len(usable) < len(committed))


def inspect_place(where: str, env: Mapping[str, str], *, quick: bool = False, tell: Tell | None = None) -> Report:
    """`inspect` for a folder or an address in S3, or the one step that it names. env: how S3 is reached.

    Raises ConfigError when there is no such place, and CheckpointError as S3 refuses.
    """
    if not where.startswith(SCHEME):
        return inspect_folder(Path(where), quick=quick, tell=tell)
    address = Address.parse(where)
    if address is None:
        raise ConfigError(f"{where} is not an address in S3", fix="name it as s3://BUCKET/PREFIX")
    folder, _, name = address.prefix.rpartition("/")
    one = step_of(name)
    if one is not None:
        address = replace(address, prefix=folder)
    return inspect(open_s3(address, env, {}), only=one, quick=quick, tell=tell)


def inspect_folder(folder: Path, *, quick: bool = False, tell: Tell | None = None) -> Report:
    """`inspect` for a folder of checkpoints, or the one of a step. Raises ConfigError when it cannot be read."""
    one = step_of(folder.absolute().name)
    storage = Disk(folder if one is None else folder.absolute().parent)
    try:
        list(folder.iterdir())
        return inspect(storage, only=one, quick=quick, tell=tell)
    except OSError as error:
        raise ConfigError(
            f"{folder} is not a folder of checkpoints", why=describe(error), fix="name the folder that holds step-…"
        ) from None


def inspect(storage: Storage, *, only: int | None = None, quick: bool = False, tell: Tell | None = None) -> Report:
    """Look at every checkpoint in `storage`, or at that of one step; changes nothing. quick: sizes, not contents.

    Raises as Storage does.
    """
    here = storage.steps() if only is None else [only]
    aside = storage.aside() if only is None else {}
    found = [_look(storage, step, quick, tell) for step in reversed(here)]
    return Report(
        folder=str(storage if only is None else storage.checkpoint(only)),
        verified=not quick,
        checkpoints=tuple(one for one in found if one is not None),
        aside=tuple(sorted(name for names in aside.values() for name in names)),
    )


def _look(storage: Storage, step: int, quick: bool, tell: Tell | None) -> Found | None:
    """None when it is gone meanwhile: a job may be pruning."""
    try:
        found = _judge(storage, step, quick, tell)
        if found.state is State.DAMAGED and MANIFEST not in storage.names(step):
            return None
    except FileNotFoundError:
        return None
    except OSError as error:
        return Found(step=step, state=State.DAMAGED, size=0, files=0, problems={step_name(step): describe(error)})
    return found


def _judge(storage: Storage, step: int, quick: bool, tell: Tell | None) -> Found:
    names = storage.listing(step)
    data = [name for name in names if is_data_name(name) or name == MANIFEST]
    size = sum(names[name].size for name in data)
    facts: dict[str, Any] = {"step": step, "size": size, "files": len(data), "best": BEST in names}
    if uploads.has_marks(names):
        facts["uploaded"] = sum(name + UPLOADED in names for name in data)
    checkpoint = storage.checkpoint(step)
    try:
        manifest, _ = read_manifest(checkpoint)
    except FileNotFoundError:
        return Found(state=State.INCOMPLETE, problems={MANIFEST: "it was never committed"}, **facts)
    except ManifestError as error:
        return Found(state=State.DAMAGED, problems={MANIFEST: str(error)}, **facts)
    problems = _sizes(names, manifest) if quick else _contents(checkpoint, manifest, tell)
    hosts = _whole_hosts(manifest, problems)
    elsewhere = {name for name, entry in manifest.files.items() if name != METADATA and entry.host not in hosts}
    absent = all(reason == MISSING for reason in problems.values()) and set(problems) == elsewhere
    state = State.WHOLE if not problems else State.PART if absent and hosts else State.DAMAGED
    return Found(state=state, problems=problems, hosts=hosts, manifest=manifest, **facts)


def _whole_hosts(manifest: Manifest, problems: Mapping[str, str]) -> tuple[str, ...]:
    lacking = {manifest.files[name].host for name in problems if name != METADATA}
    return tuple(sorted({entry.host for entry in manifest.files.values()} - lacking))


def _sizes(here: Mapping[str, Seen], manifest: Manifest) -> dict[str, str]:
    problems = {}
    for name, entry in sorted(manifest.files.items()):
        if name not in here:
            problems[name] = MISSING
        elif here[name].size != entry.size:
            problems[name] = f"{here[name].size} bytes instead of {entry.size}"
    return problems


def _contents(checkpoint: Source, manifest: Manifest, tell: Tell | None) -> dict[str, str]:
    done, total = 0, manifest.size

    def count(size: int) -> None:
        nonlocal done
        done += size
        if tell is not None:
            tell(manifest.name, done, total)

    return dict(sorted(verify(checkpoint, manifest.files, threads=num_threads(1), tell=count).items()))
