"""How alike two runs are: in what they wrote of their losses, step by step, and in the weights they ended with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from moorage.rehearsal.traces import Point, Traces, last_values

TOLERANCE = 1e-6
"""Absolute, and relative to the greater value, up to which weights count as equal."""
SHOWN = 1e-5
"""The same for values in a log, which have six digits or so: their last one may be rounded the other way."""
CLOSE = 0.1
"""On another world size: how far apart losses may end, as a share of how far the loss has fallen."""
_LAST = 0.1
"""Share of the steps that are the end of a trace."""


class Same(IntEnum):
    """From the best; the worst of several counts."""

    EXACT = 0
    NEAR = 1
    APART = 2

    @property
    def words(self) -> str:
        return ("bit-exact", f"equal within {TOLERANCE:g}", "diverged")[self]


@dataclass(frozen=True, kw_only=True)
class Departure:
    """The first value that is another one. expected, found: as they were written. step: None where none is known.
    attempt: of the interrupted run, from 1."""

    metric: str
    step: int | None
    attempt: int
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class Losses:
    """same: None where there was nothing to compare. values: of all metrics, how many were compared. missing: steps
    that one run wrote of and the other did not."""

    metrics: tuple[str, ...]
    same: Same | None
    values: int
    first: Departure | None
    missing: tuple[int, ...]


def losses_of(traces: Traces, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The metrics to compare: those wanted, else the losses, else all but the epoch."""
    names = [name for name in traces if name not in ("epoch", "step")]
    if wanted:
        return tuple(name for name in wanted if name in traces)
    return tuple([name for name in names if "loss" in name.lower()] or names)


def compare_losses(whole: Traces, broken: Traces, names: Sequence[str]) -> Losses:
    """broken: of the run that was interrupted. What it did again has to be the same again, too."""
    same, compared, missing = Same.EXACT, 0, set()
    departures: list[Departure] = []
    for name in names:
        pairs = list(_pairs(whole.get(name, []), broken.get(name, [])))
        compared += len(pairs)
        missing |= last_values(whole.get(name, [])).keys() ^ last_values(broken.get(name, [])).keys()
        for one, other in pairs:
            degree = _alike(one, other)
            same = max(same, degree)
            if degree is Same.APART:
                departures.append(
                    Departure(metric=name, step=other.step, attempt=other.attempt, expected=one.text, found=other.text)
                )
                break
    return Losses(
        metrics=tuple(names),
        same=same if compared else None,
        values=compared,
        first=min(departures, key=lambda one: (one.attempt, one.step or 0), default=None),
        missing=tuple(sorted(missing)),
    )


def _pairs(whole: Sequence[Point], broken: Sequence[Point]) -> list[tuple[Point, Point]]:
    """In the order in which the interrupted run wrote. Without steps, the last of both."""
    expected = last_values(whole)
    if expected:
        return [(expected[point.step], point) for point in broken if point.step is not None and point.step in expected]
    return [(whole[-1], broken[-1])] if whole and broken else []


def _alike(one: Point, other: Point) -> Same:
    if one.text == other.text:
        return Same.EXACT
    if math.isfinite(one.value) and math.isfinite(other.value) and within(one.value, other.value, SHOWN):
        return Same.NEAR
    return Same.APART


def within(one: float, other: float, tolerance: float) -> bool:
    return abs(one - other) <= tolerance * max(1.0, abs(one), abs(other))


@dataclass(frozen=True, kw_only=True)
class End:
    """How a loss ended on other world sizes. expected, found: means over the last tenth of the steps. apart: their
    distance, as a share of how far the loss fell. missing: steps that nobody wrote of, or that were not there before.
    """

    metric: str
    expected: float
    found: float
    apart: float
    missing: tuple[int, ...]

    @property
    def close(self) -> bool:
        return self.apart <= CLOSE and not self.missing


def compare_ends(whole: Traces, spread: Traces, names: Sequence[str]) -> tuple[End, ...]:
    """Sums over other ranks round in another order, and batch norm sees other batches: such runs end close, not alike.
    That every step was done, and none beyond, has to hold all the same."""
    made = []
    for name in names:
        one, other = last_values(whole.get(name, [])), last_values(spread.get(name, []))
        if not one or not other:
            continue
        expected, found = _end(one), _end(other)
        values = [point.value for point in one.values()]
        fallen = (max(values) - min(values)) or 1.0
        made.append(
            End(
                metric=name, expected=expected, found=found, apart=abs(expected - found) / fallen,
                missing=tuple(sorted(one.keys() ^ other.keys())),
            )
        )  # fmt: skip
    return tuple(made)


def _end(points: Mapping[int, Point]) -> float:
    values = [point.value for point in points.values()]
    part = values[-max(1, round(_LAST * len(values))) :]
    return math.fsum(part) / len(part)
