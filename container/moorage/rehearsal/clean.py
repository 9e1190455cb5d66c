"""Removes what runs left that died before they could: containers, networks, processes, mounts and folders."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from moorage.errors import EngineError
from moorage.rehearsal import runs
from moorage.rehearsal.containers import LABEL, connect, engine_errors, remove
from moorage.rehearsal.disks import unmount_below

logger = logging.getLogger("moorage")


def clean(env: Mapping[str, str]) -> list[str]:
    """What was removed, one line each. Runs that live are left alone, and so are results.

    Raises EngineError where something cannot be removed. Without an engine there are no containers to remove.
    """
    removed: list[str] = []
    try:
        client = connect(env)
    except EngineError as error:
        logger.info("no containers are looked for: %s", error)
    else:
        try:
            removed += _engine(client)
        finally:
            client.close()
    for path in runs.entries(env):
        with runs.dead(path) as entry:
            if entry is not None:
                removed += _entry(entry)
    return removed


def _engine(client: Any) -> Iterator[str]:
    with engine_errors("clean up"):
        for container in client.containers.list(all=True, filters={"label": LABEL}):
            if _is_dead(container.labels):
                remove(container)
                yield f"container {container.name}"
        for network in client.networks.list(filters={"label": LABEL}):
            if _is_dead(network.attrs["Labels"]):
                network.remove()
                yield f"network {network.name}"


def _is_dead(labels: Mapping[str, str]) -> bool:
    """Of another machine that shares the engine nothing is known."""
    lock = labels.get(runs.LOCK_LABEL)
    return lock is not None and labels.get(runs.MACHINE_LABEL) == runs.machine() and not runs.lives(lock)


def _entry(entry: runs.Entry) -> Iterator[str]:
    for process, start in entry.processes.items():
        if start and runs.started(process) == start:
            os.killpg(process, signal.SIGKILL)
            yield f"process {process}"
    hosts, marker = entry.folder / runs.HOSTS, entry.folder / runs.MARKER
    if marker.is_file() and marker.read_text(encoding="utf-8", errors="replace").strip() == entry.run:
        unmount_below(hosts)
        if hosts.exists():
            try:
                runs.remove_tree(hosts)
            except OSError as error:
                raise EngineError(
                    f"cannot remove {hosts}", why=str(error), fix="remove it as root: containers wrote it"
                ) from None
            yield f"folder {hosts}"
        marker.unlink()
    entry.path.unlink(missing_ok=True)
