"""Who shares which folder: found by looking, since nothing in the job's configuration says it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage.checkpoint.group import Group
from moorage.checkpoint.layout import IGNORE
from moorage.checkpoint.storage import Storage
from moorage.errors import CheckpointError, describe

_PROBE = re.compile(r"probe-[0-9a-f]{16}" + re.escape(IGNORE))


@dataclass(frozen=True, kw_only=True)
class Store:
    """What keeps the checkpoints, as this rank sees it.

    hosts: by rank, the name of its host. leaders: by rank, the first of the ranks that see the same folder as it does:
    a host has one leader, and hosts that share a disk have one among them. The leader writes what is there once.
    """

    storage: Storage
    rank: int
    hosts: tuple[str, ...]
    leaders: tuple[int, ...]

    @property
    def leader(self) -> int:
        return self.leaders[self.rank]

    @property
    def is_leader(self) -> bool:
        return self.leader == self.rank

    @property
    def mates(self) -> tuple[int, ...]:
        """All ranks that see this folder, this one included."""
        return tuple(rank for rank, leader in enumerate(self.leaders) if leader == self.leader)

    @property
    def all_leaders(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.leaders)))

    def name(self, rank: int) -> str:
        """The host of a rank, for messages."""
        return self.hosts[rank]


def find_store(storage: Storage, group: Group, *, host: str, local_rank: int) -> Store:
    """See that it can be written, and who else writes there. Collective. Raises CheckpointError when it cannot."""
    if storage.path is not None:
        hosts, leaders = _who_shares(storage.path, group, host, local_rank)
    else:
        group.each(f"{storage} cannot be used", storage.prepare if group.rank == 0 else _nothing)
        hosts, leaders = tuple(group.gather(host)), (0,) * group.world_size
    return Store(storage=storage, rank=group.rank, hosts=hosts, leaders=leaders)


def _nothing() -> None:
    """The first rank does it for all."""


def _who_shares(folder: Path, group: Group, host: str, local_rank: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """By rank: the hosts, and the leaders.

    The first rank of each host leaves a file with a name of its own, and all look which of them they see.
    """
    mine = f"probe-{secrets.token_hex(8)}{IGNORE}"

    def leave_probe() -> tuple[str, str]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if local_rank == 0:
                (folder / mine).touch()
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint folder {folder} on {host} cannot be written",
                why=describe(error),
                fix="CheckpointConfig.LocalPath (checkpointconfig.json) names it: choose a folder that can be written",
            ) from error
        return (mine if local_rank == 0 else "", host)

    left = group.each(f"the checkpoint folder {folder} cannot be used", leave_probe)
    seen = group.each(
        f"the checkpoint folder {folder} cannot be used", lambda: _seen(folder, [name for name, _ in left])
    )
    if local_rank == 0:
        # Also those of runs that were killed while they looked.
        for entry in folder.iterdir():
            if _PROBE.fullmatch(entry.name) and (entry.name == mine or entry.name not in dict(left)):
                entry.unlink(missing_ok=True)
    # The same first probe seen means the same folder; the first of those ranks leads.
    return tuple(host for _, host in left), tuple(seen.index(first) for first in seen)


def _seen(folder: Path, names: Sequence[str]) -> int:
    for rank, name in enumerate(names):
        if name and (folder / name).exists():
            return rank
    raise CheckpointError(
        f"the ranks of one host see different checkpoint folders at {folder}",
        why="none of them holds what the first rank of the host wrote",
        fix="give all ranks of a host the same folder, and ranks on different hosts different host names",
    )
