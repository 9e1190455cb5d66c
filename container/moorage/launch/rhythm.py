"""How long a rank has been silent, and how long it may be: from its marks, looked at now and then."""

from __future__ import annotations

import statistics
from collections import deque

from moorage.contract.progress import Activity, Mark

FLOOR = 300.0
"""Seconds without a step that are no hang: a disk that stalls, a kernel that is compiled anew. Below the 10 minutes
after which torch's own collectives give up and blame those who waited."""

USUAL, LONGEST = 10, 3
"""Times the usual step, and the longest so far, that a step may take."""

LONG = 6
"""Times as long that what is not a step may take: start, evaluation, save, finish."""

_STEPS = 50


class Rhythm:
    """Of one rank. Times are of any one clock, in seconds. bound: that a step may take; None to go by those before."""

    def __init__(self, bound: float | None) -> None:
        self._bound = bound
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._longest = 0.0
        self._mark: Mark | None = None
        self._since = 0.0

    def look(self, mark: Mark, now: float) -> None:
        before, self._mark = self._mark, mark
        if before is None:
            self._since = now
        elif (mark.step, mark.signs) != (before.step, before.signs):
            # A sign in between was an evaluation or a save, whose time is no step's.
            if mark.activity is Activity.TRAINING and mark.signs == before.signs:
                took = (now - self._since) / (mark.step - before.step)
                self._steps.append(took)
                self._longest = max(self._longest, took)
            self._since = now

    def silent(self, now: float) -> float:
        """Seconds since it was seen to do anything."""
        return now - self._since

    @property
    def usual(self) -> float:
        """Seconds of a step: the median of the last ones; 0 while none is known."""
        return statistics.median(self._steps) if self._steps else 0.0

    @property
    def limit(self) -> float:
        """Seconds that it may be silent in what it is at."""
        bound = self._bound or max(FLOOR, USUAL * self.usual, LONGEST * self._longest)
        training = self._mark is not None and self._mark.activity is Activity.TRAINING
        return bound if training else LONG * bound
