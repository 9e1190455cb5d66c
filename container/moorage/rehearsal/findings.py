"""What `moorage doctor` finds: one thing looked at, how it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    SKIPPED = "skipped"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """fix: what to do about it; empty where it is ok."""

    name: str
    state: State
    text: str
    fix: str = ""


def size(count: float) -> str:
    """`1.2 GB` of a number of bytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
