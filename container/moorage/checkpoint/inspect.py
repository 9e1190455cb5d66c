"""What lies in a checkpoint folder, and whether it is whole; for `moorage inspect`. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from moorage.checkpoint import uploads
from moorage.checkpoint.durable import describe
from moorage.checkpoint.layout import BEST, MANIFEST, METADATA, UPLOADED, damaged, is_data_name, step_of, steps
from moorage.checkpoint.layout import step_name as name_of
from moorage.checkpoint.manifest import Manifest, ManifestError, read_manifest
from moorage.checkpoint.source import Folder, num_threads, verify
from moorage.errors import ConfigError

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

    folder: Path
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


def inspect_folder(folder: Path, *, quick: bool = False, tell: Tell | None = None) -> Report:
    """Look at every checkpoint in `folder`, or at the one that it is; changes nothing. quick: sizes, not contents.

    Raises ConfigError when it is not a folder that can be read.
    """
    try:
        one = step_of(folder.absolute().name)
        home = folder.absolute().parent if one is not None else folder
        here = [one] if one is not None else steps(folder)
        aside = [] if one is not None else [path.name for paths in damaged(folder).values() for path in paths]
        list(folder.iterdir())
    except OSError as error:
        raise ConfigError(
            f"{folder} is not a folder of checkpoints", why=describe(error), fix="name the folder that holds step-…"
        ) from None
    found = [_look(home / name_of(step), step, quick, tell) for step in reversed(here)]
    return Report(
        folder=folder,
        verified=not quick,
        checkpoints=tuple(one for one in found if one is not None),
        aside=tuple(sorted(aside)),
    )


def _look(checkpoint: Path, step: int, quick: bool, tell: Tell | None) -> Found | None:
    """None when it is gone meanwhile: a job may be pruning."""
    try:
        found = _judge(checkpoint, step, quick, tell)
        if found.state is State.DAMAGED and not (checkpoint / MANIFEST).exists():
            return None
    except FileNotFoundError:
        return None
    except OSError as error:
        return Found(step=step, state=State.DAMAGED, size=0, files=0, problems={checkpoint.name: describe(error)})
    return found


def _judge(checkpoint: Path, step: int, quick: bool, tell: Tell | None) -> Found:
    names = uploads.listing(checkpoint)
    data = [name for name in names if is_data_name(name) or name == MANIFEST]
    facts: dict[str, Any] = {"step": step, "size": _size(checkpoint, data), "files": len(data), "best": BEST in names}
    if uploads.has_marks(names):
        facts["uploaded"] = sum(name + UPLOADED in names for name in data)
    try:
        manifest, _ = read_manifest(Folder(checkpoint))
    except FileNotFoundError:
        return Found(state=State.INCOMPLETE, problems={MANIFEST: "it was never committed"}, **facts)
    except ManifestError as error:
        return Found(state=State.DAMAGED, problems={MANIFEST: str(error)}, **facts)
    problems = _sizes(checkpoint, manifest) if quick else _contents(checkpoint, manifest, tell)
    hosts = _whole_hosts(manifest, problems)
    elsewhere = {name for name, entry in manifest.files.items() if name != METADATA and entry.host not in hosts}
    absent = all(reason == MISSING for reason in problems.values()) and set(problems) == elsewhere
    state = State.WHOLE if not problems else State.PART if absent and hosts else State.DAMAGED
    return Found(state=state, problems=problems, hosts=hosts, manifest=manifest, **facts)


def _size(checkpoint: Path, names: Collection[str]) -> int:
    total = 0
    for name in names:
        try:
            total += (checkpoint / name).lstat().st_size
        except FileNotFoundError:
            continue
    return total


def _whole_hosts(manifest: Manifest, problems: Mapping[str, str]) -> tuple[str, ...]:
    lacking = {manifest.files[name].host for name in problems if name != METADATA}
    return tuple(sorted({entry.host for entry in manifest.files.values()} - lacking))


def _sizes(checkpoint: Path, manifest: Manifest) -> dict[str, str]:
    problems = {}
    for name, entry in sorted(manifest.files.items()):
        try:
            size = (checkpoint / name).lstat().st_size
        except FileNotFoundError:
            problems[name] = MISSING
        else:
            if size != entry.size:
                problems[name] = f"{size} bytes instead of {entry.size}"
    return problems


def _contents(checkpoint: Path, manifest: Manifest, tell: Tell | None) -> dict[str, str]:
    done, total = 0, manifest.size

    def count(size: int) -> None:
        nonlocal done
        done += size
        if tell is not None:
            tell(manifest.name, done, total)

    return dict(sorted(verify(Folder(checkpoint), manifest.files, threads=num_threads(1), tell=count).items()))
