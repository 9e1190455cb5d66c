"""Which rank the others wait for, from what is seen of all of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from moorage.contract.failure import Failure
from moorage.contract.progress import Activity
from moorage.errors import HangError

_AT = {
    Activity.SET_UP: "starting",
    Activity.TRAINING: "training",
    Activity.EVALUATING: "evaluating",
    Activity.SAVING: "saving",
    Activity.FINISHING: "finishing",
    Activity.LEFT: "leaving",
}
_FIX = "the stacks of all ranks are in the logs of their hosts; settings hang_minutes and on_hang"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A rank that makes no step any more.

    silent, usual: seconds since its last sign of life, and of its usual step. state: of its process, as words. stopped,
    ended: what that means. waits: its main thread waits for other ranks. moves: it was elsewhere each time it was
    looked at. frames: of the main thread, the innermost first; none where it does not answer. where: among them, in the
    program.
    """

    host: str
    rank: int
    step: int
    activity: int
    silent: float
    usual: float
    state: str = ""
    stopped: bool = False
    ended: bool = False
    waits: bool = False
    moves: bool = False
    frames: tuple[str, ...] = ()
    where: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Seen:
        """Raises TypeError or ValueError for what `to_json` did not write."""
        return cls(**{**value, "frames": tuple(str(frame) for frame in value["frames"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def answers(self) -> bool:
        return bool(self.frames)


def all_at_work(ranks: Sequence[Seen]) -> bool:
    """Every rank is busy with something of its own: no step is made, and yet none waits for another."""
    return all(rank.answers and rank.moves and not rank.waits for rank in ranks)


def judge(ranks: Sequence[Seen]) -> Failure:
    """Name the rank that holds the others up, or say that none can be told from the rest. ranks: of all hosts."""
    silent, usual = min(rank.silent for rank in ranks), max(rank.usual for rank in ranks)
    culprits, why = _culprits(ranks)
    named = culprits[0] if culprits else None
    if len(culprits) > 1:
        why = f"{why}; so is {_listed(culprits[1:])}"
    usually = f" ({usual:.2g} s is usual)" if usual else ""
    error = HangError(f"no step for {silent:.0f} s{usually} after step {_steps(ranks)}: {why}")
    failure = Failure.from_error(error, named.host if named else ranks[0].host, time=time.time())
    return replace(
        failure,
        hung=True,
        rank=named.rank if named else None,
        step=min(rank.step for rank in ranks),
        frames=tuple(reversed(named.frames[:6])) if named else (),
        hint=_FIX,
    )


def _culprits(ranks: Sequence[Seen]) -> tuple[list[Seen], str]:
    """Those that hold up the others, and by what, in words about the first. The surest sign comes first."""
    others = "while the others wait" if len(ranks) > 1 else ""
    if stopped := [rank for rank in ranks if rank.stopped]:
        return stopped, f"it is stopped and cannot answer ({stopped[0].state})"
    if ended := [rank for rank in ranks if rank.ended and rank.activity < Activity.FINISHING]:
        return ended, f"its process has ended {others}".rstrip()
    if mute := [rank for rank in ranks if not rank.answers and not rank.ended]:
        return mute, f"it does not answer ({mute[0].state or 'no word from its host'})"
    out = [rank for rank in ranks if not rank.waits and not rank.ended]
    if out and len(out) < len(ranks):
        how = "goes on" if out[0].moves else "stands"
        return out, f"it is outside a collective while the others wait in one, and {how} at {out[0].where}"
    if behind := [rank for rank in ranks if rank.step < max(other.step for other in ranks)]:
        return behind, f"it is behind the others by a step, at {behind[0].where}"
    if apart := _minority(ranks):
        return apart, f"it is {_AT[Activity(apart[0].activity)]} at {apart[0].where}, and the others elsewhere"
    if len(ranks) == 1:
        return list(ranks), f"it {'goes on' if ranks[0].moves else 'stands'} at {ranks[0].where}"
    if out:
        return [], f"all ranks are at {out[0].where}"
    return [], f"all ranks wait in the same collective, at {ranks[0].where}: the network or a device between them"


def _minority(ranks: Sequence[Seen]) -> list[Seen]:
    """Those that are not where most are; none where there is no most."""
    places = Counter(map(_place, ranks))
    (most, times), *rest = places.most_common()
    if not rest or times == rest[0][1]:
        return []
    return [rank for rank in ranks if _place(rank) != most]


def _place(rank: Seen) -> tuple[int, str]:
    """Folders do not count: a host may have its own."""
    return rank.activity, rank.where.rpartition("/")[2]


def _steps(ranks: Sequence[Seen]) -> str:
    low, high = min(rank.step for rank in ranks), max(rank.step for rank in ranks)
    return str(low) if low == high else f"{low} to {high}"


def _listed(ranks: Sequence[Seen]) -> str:
    shown = ", ".join(f"rank {rank.rank} on {rank.host}" for rank in ranks[:4])
    return shown if len(ranks) <= 4 else f"{shown} and {len(ranks) - 4} more"
