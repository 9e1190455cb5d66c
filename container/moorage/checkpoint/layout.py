"""How checkpoints lie in a folder: names, listing, the upload agent's marks, removal. No torch here.

`<folder>/step-00000120/` holds the shard files, `.metadata` and, last of all, `manifest.json`: a folder without one is
no checkpoint. The platform's agent puts `X.sagemaker-uploading` and `X.sagemaker-uploaded` beside every file X it
handles and leaves alone what ends in `.sagemaker-ignore`, so patterns are matched to the end of a name.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Collection
from pathlib import Path

MANIFEST = "manifest.json"
METADATA = ".metadata"
BEST = "best"
IGNORE = ".sagemaker-ignore"
UPLOADING = ".sagemaker-uploading"
UPLOADED = ".sagemaker-uploaded"

_STEP = re.compile(r"step-([0-9]{8,15})")
_DAMAGED = re.compile(r"damaged-([0-9]{8,15})-[0-9]+")
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,200}")


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint folder's name, None for any other name."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found and step_name(int(found[1])) == name else None


def damaged_name(step: int, others: Collection[str]) -> str:
    """For a checkpoint that is moved aside. others: the names that are taken."""
    number = 1
    while (name := f"damaged-{step:08d}-{number}") in others:
        number += 1
    return name


def damaged_step(name: str) -> int | None:
    """The step of one that was moved aside, None for any other name."""
    found = _DAMAGED.fullmatch(name)
    return int(found[1]) if found else None


def is_data_name(name: str) -> bool:
    """A name that a manifest may list: plain, inside its folder, and none of those that mean something else."""
    special = name in (".", "..", MANIFEST, BEST) or name.endswith((IGNORE, UPLOADING, UPLOADED))
    return _PLAIN.fullmatch(name) is not None and not special


def steps(folder: Path) -> list[int]:
    """The steps that have a folder here, whole or not, oldest first."""
    found = (step_of(entry.name) for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    return sorted(step for step in found if step is not None)


def committed(folder: Path) -> list[int]:
    """The steps that have a manifest here, oldest first."""
    return [step for step in steps(folder) if (folder / step_name(step) / MANIFEST).exists()]


def damaged(folder: Path) -> dict[int, list[Path]]:
    """Checkpoints that were moved aside, by step."""
    aside: dict[int, list[Path]] = {}
    for entry in folder.iterdir():
        if (step := damaged_step(entry.name)) is not None:
            aside.setdefault(step, []).append(entry)
    return aside


def is_uploading(names: Collection[str]) -> bool:
    """Whether the agent has begun on a file of a folder with these names and not ended."""
    begun = (name.removesuffix(UPLOADING) for name in names if name.endswith(UPLOADING))
    return any(name in names and name + UPLOADED not in names for name in begun)


def remove(checkpoint: Path) -> bool:
    """Delete a checkpoint and its marks, the manifest first. False when the agent is uploading from it: try later.

    Raises OSError.
    """
    if not checkpoint.exists():
        return True
    if is_uploading({entry.name for entry in checkpoint.iterdir()}):
        return False
    # Without its manifest it is no checkpoint any more: a crash below leaves nothing that looks whole.
    if (checkpoint / MANIFEST).is_file():
        (checkpoint / MANIFEST).unlink()
    # The marks last: that of a file is there as long as the file is.
    for entry in sorted(checkpoint.iterdir(), key=lambda entry: entry.name.endswith((UPLOADING, UPLOADED))):
        _remove_entry(entry)
    try:
        checkpoint.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False  # the agent has begun on a file since we looked
        raise
    return True


def _remove_entry(path: Path) -> None:
    if path.name.endswith((UPLOADING, UPLOADED)):
        if not path.with_name(path.name.removesuffix(UPLOADING).removesuffix(UPLOADED)).exists():
            path.unlink(missing_ok=True)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    # Asked once more for each file: the agent goes on while we delete.
    elif path.with_name(path.name + UPLOADED).exists() or not path.with_name(path.name + UPLOADING).exists():
        path.unlink(missing_ok=True)


def move_aside(folder: Path, step: int) -> Path | None:
    """Keep a damaged checkpoint under another name, not to be uploaded again, so that its step can be saved again.

    Where the agent is uploading from it only the manifest goes: None, and the rest is removed by a later prune.
    Raises OSError.
    """
    checkpoint = folder / step_name(step)
    manifest = checkpoint / MANIFEST
    if manifest.exists():
        # First of all: without it under its name this is no checkpoint any more.
        manifest.rename(checkpoint / (MANIFEST + IGNORE))
    if is_uploading({entry.name for entry in checkpoint.iterdir()}):
        return None
    for entry in list(checkpoint.iterdir()):
        if entry.name.endswith((UPLOADING, UPLOADED)):
            entry.unlink()
        elif not entry.name.endswith(IGNORE):
            entry.rename(entry.with_name(entry.name + IGNORE))
    return checkpoint.rename(folder / damaged_name(step, {entry.name for entry in folder.iterdir()}))
