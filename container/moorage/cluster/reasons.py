"""What was found, each with why it is so."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One line of the block printed at the start: `what` was found to be `value`, because of `why`."""

    what: str
    value: str
    why: str


def size(num_bytes: int) -> str:
    """Bytes for a reader: 79.6 GiB, 64 MiB."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes // MIB} MiB"


def aligned(reasons: tuple[Reason, ...]) -> str:
    """One line each, the columns under one another."""
    left = max((len(reason.what) for reason in reasons), default=0)
    middle = max((len(reason.value) for reason in reasons), default=0)
    return "\n".join(f"{r.what:<{left}}  {r.value:<{middle}}  {r.why}".rstrip() for r in reasons)
