"""What a save behind the training takes from it: how much longer a step is while one is under way."""

from __future__ import annotations

import statistics
from collections import deque

ASSUMED = 0.1
"""Of the time while a save is written, lost to training, until it is measured: they share cores, memory and disk."""

_LEAST = 5
"""Steps of either kind, without which nothing is said to be measured."""

_REMEMBERED = 100


class Slowdown:
    """Of one rank. Medians are compared: an evaluation between two steps, or a batch that comes late, is no matter."""

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=_REMEMBERED)
        self._behind: deque[float] = deque(maxlen=_REMEMBERED)
        self._last: tuple[float, bool] | None = None

    def step(self, now: float, *, saving: bool) -> None:
        """A step is done at `now`, in seconds of any clock. saving: whether a save is under way.

        The first step after a save began holds its pause, and in the last one it ended: neither counts.
        """
        if self._last is not None and self._last[1] == saving:
            (self._behind if saving else self._usual).append(now - self._last[0])
        self._last = (now, saving)

    @property
    def measured(self) -> bool:
        return min(len(self._usual), len(self._behind)) >= _LEAST

    @property
    def share(self) -> float:
        """Of the time while a save is under way, what training loses: from 0 to 1, `ASSUMED` until it is measured."""
        if not self.measured:
            return ASSUMED
        usual, behind = statistics.median(self._usual), statistics.median(self._behind)
        return max(0.0, 1 - usual / behind) if behind else 0.0
