"""Times and sizes as counts in buckets: cheap to add to, enough to say how they are spread."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

_STEPS = (1, 1.1, 1.25, 1.4, 1.6, 1.8, 2, 2.25, 2.5, 2.8, 3.2, 3.6, 4, 4.5, 5, 5.6, 6.3, 7.1, 8, 9)
"""Of one decade: each about 12% above the one before, and the round ones among them."""

SECONDS = tuple(round(step * 10.0**decade, 9) for decade in range(-5, 3) for step in _STEPS)
"""Bounds from 10 µs to 900 s."""

ROUND_SECONDS = tuple(bound for bound in SECONDS if 5e-4 <= bound <= 100 and f"{bound:e}"[:3] in ("1.0", "2.5", "5.0"))
"""Those that a person would have chosen."""


class Histogram:
    """bounds: upper ones, ascending, each in the bucket below it; what is above all of them has one bucket more."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def up_to(self, bounds: Sequence[float]) -> Iterator[tuple[float, int]]:
        """How many were at most as large as each. bounds: some of ours, ascending."""
        seen, place = 0, 0
        for bound in bounds:
            end = bisect_left(self.bounds, bound) + 1
            seen += sum(self.counts[place:end])
            place = end
            yield bound, seen

    def since(self, counts: Sequence[int]) -> list[int]:
        """counts: a copy of ours, taken earlier."""
        return [now - before for now, before in zip(self.counts, counts, strict=True)]

    def spread(self, counts: Sequence[int], most: int) -> list[float]:
        """At most `most` values that are spread as those in `counts` are: one for each of so many equal shares."""
        total = sum(counts)
        num_values = min(total, most)
        values: list[float] = []
        seen = 0
        for place, count in enumerate(counts):
            seen += count
            while len(values) < num_values and (len(values) + 0.5) * total / num_values <= seen:
                values.append(self.bounds[min(place, len(self.bounds) - 1)])
        return values
