"""Which checkpoints stay. Deleting one here deletes it in S3 too: the platform's agent follows. No torch here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from moorage.checkpoint.durable import describe, write_bytes
from moorage.checkpoint.layout import (
    BEST,
    IGNORE,
    MANIFEST,
    UPLOADED,
    UPLOADING,
    committed,
    damaged,
    has_agent,
    is_data_name,
    is_uploaded,
    is_uploading,
    remove,
    step_name,
    steps,
)
from moorage.checkpoint.manifest import ManifestError, read_manifest


def mark_best(folder: Path, step: int) -> None:
    """Let the checkpoint of `step`, committed here, be the best from now on. Raises OSError."""
    write_bytes(folder / step_name(step) / BEST, b"")


def kept(folder: Path, keep: int) -> set[int]:
    """The steps that stay: the newest `keep` committed ones, the newest marked best, and where the agent uploads from
    this folder, the newest that it has uploaded whole, so that S3 is never without one. Raises OSError.
    """
    here = committed(folder)
    stay = set(here[-keep:])
    stay |= set([step for step in here if (folder / step_name(step) / BEST).exists()][-1:])
    if has_agent(folder):
        stay |= set([step for step in here if is_uploaded(folder / step_name(step))][-1:])
    return stay


def prune(folder: Path, keep: int, log: logging.Logger) -> list[int]:
    """Remove what need not stay, and say so. The steps of the committed checkpoints that are gone.

    Whatever is newer than the newest committed step is left alone: it may be on its way. So is a checkpoint from which
    the agent is uploading, until the next time. An error is logged, since training can go on.
    """
    gone: list[int] = []
    try:
        here = committed(folder)
        if not here:
            return gone
        stay = kept(folder, keep)
        for step in [step for step in steps(folder) if step < here[-1] and step not in stay]:
            if remove(folder / step_name(step)):
                if step in here:
                    gone.append(step)
                else:
                    log.info("%s was never committed: removed", step_name(step))
        for step in stay:
            for stray in _strays(folder / step_name(step)):
                stray.unlink(missing_ok=True)
        for step, folders in damaged(folder).items():
            for aside in folders:
                # It was kept to be looked at until training passed its step again.
                if step <= here[-1] and remove(aside):
                    log.info("%s, moved aside as damaged, was removed", aside.name)
    except OSError as error:
        log.warning("old checkpoints in %s cannot be removed: %s", folder, describe(error))
    return gone


def _strays(checkpoint: Path) -> Iterator[Path]:
    """Files of another attempt at the same step, which the manifest does not name."""
    if is_uploading(checkpoint):
        return
    try:
        manifest, _ = read_manifest(checkpoint)
    except (FileNotFoundError, ManifestError):
        return
    for entry in checkpoint.iterdir():
        name = entry.name.removesuffix(UPLOADED).removesuffix(UPLOADING).removesuffix(IGNORE)
        if is_data_name(name) and name not in manifest.files and name != MANIFEST:
            yield entry
