"""Content types: what a body is, and what a client accepts (RFC 9110, sections 8.3 and 12.5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

JSON, CSV, NPY, JSON_LINES = "application/json", "text/csv", "application/x-npy", "application/jsonlines"

KNOWN: Mapping[str, str] = MappingProxyType(
    {
        **{kind: kind for kind in (JSON, CSV, NPY, JSON_LINES)},
        "text/json": JSON,
        "application/csv": CSV,
        "application/jsonl": JSON_LINES,
        "application/x-jsonlines": JSON_LINES,
        "application/x-ndjson": JSON_LINES,
    }
)
"""Each name that clients use, and the format it means; the usual names come first."""

TEXTS = frozenset({JSON, CSV, JSON_LINES})
"""Formats in UTF-8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """name: without its parameters, in lower case. format: one of those above, or empty. charset: lower case."""

    name: str
    format: str
    charset: str


@lru_cache(maxsize=256)
def parse(content_type: str) -> Media:
    """`text/csv; charset=UTF-8`."""
    name, parameters = _parts(content_type)
    known = KNOWN.get(name) or (JSON if name.endswith("+json") else "")
    return Media(name=name, format=known, charset=parameters.get("charset", "").strip('"').lower())


@lru_cache(maxsize=256)
def choose(accept: str, default: str) -> str:
    """The name among KNOWN that `accept` prefers; `default`, which is one of them, where it has no preference.

    Empty when nothing of it is known.
    """
    ranges = _ranges(accept)
    if not ranges:
        return default
    names = (default, *(name for name in KNOWN if name != default))
    ranked = [(rank, name) for name in names if (rank := _rank(name, ranges))]
    # The first of equals is the default.
    return max(ranked, key=lambda pair: pair[0])[1] if ranked else ""


@lru_cache(maxsize=256)
def wanted(accept: str, default: str) -> str:
    """What a handler is told that the client accepts: its first choice that names one type, as AWS's containers do."""
    named = [(q, -at, name) for at, (name, q) in enumerate(_ranges(accept)) if q > 0 and "*" not in name]
    if not named:
        return default
    return choose(accept, default) or max(named)[2]


def _parts(text: str) -> tuple[str, dict[str, str]]:
    name, *rest = text.split(";")
    pairs = (part.partition("=") for part in rest)
    return name.strip().lower(), {key.strip().lower(): value.strip() for key, _, value in pairs}


def _ranges(accept: str) -> list[tuple[str, float]]:
    """Each media range with its q, in the order given; what cannot be read is left out."""
    found = []
    for part in accept.split(","):
        name, parameters = _parts(part)
        try:
            q = float(parameters.get("q", "1"))
        except ValueError:
            continue
        if name and 0 <= q <= 1:
            found.append(("*/*" if name == "*" else name, q))
    return found


def _rank(name: str, ranges: list[tuple[str, float]]) -> tuple[float, int, int] | None:
    """How much a client likes `name`: by q, by how exactly it is named, by the place in the list; None: not at all."""
    exactness = {"*/*": 0, f"{name.partition('/')[0]}/*": 1, name: 2}
    matching = [(exactness[pattern], q, -at) for at, (pattern, q) in enumerate(ranges) if pattern in exactness]
    if not matching:
        return None
    exact, q, place = max(matching)
    return (q, exact, place) if q > 0 else None
