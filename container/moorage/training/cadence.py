"""How often to save by the clock: what a save costs, weighed against what an interruption would lose."""

from __future__ import annotations

import math
import statistics
from collections import deque

from moorage.training.slowdown import Slowdown

FIRST_SECONDS = 30.0
"""From the first step to the first save, whose cost nobody knows yet: an early interruption loses little."""

LEAST_SECONDS = 60.0
"""Between two saves, however cheap they are: each is uploaded, and says so in the log."""

MOST_SECONDS = 3600.0
"""Between two saves, however dear they are: how often a job is interrupted is an assumption."""

SAVES_APART = 2.0
"""An interval is at least this many times the length of a save, so that training is alone half of the time."""

_REMEMBERED = 5
_NOTABLE = 1.25


def optimum(cost: float, between: float) -> float:
    """Seconds of training between two saves that lose the least time in all.

    cost: seconds of training that a save takes. between: mean seconds between two interruptions. Daly's higher-order
    estimate, d being the cost and M the time between interruptions:

        sqrt(2 d M) (1 + sqrt(d / 2M) / 3 + d / 18M) - d, and M where d >= 2M

    Its first factor alone is Young's rule. J. W. Young, "A first order approximation to the optimum checkpoint
    interval", CACM 17 (1974); J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart
    dumps", Future Generation Computer Systems 22 (2006), equation 37.
    """
    if cost >= 2 * between:
        return between
    ratio = cost / (2 * between)
    return math.sqrt(2 * cost * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


class Cadence:
    """The interval between the starts of two saves, in `interval`: seconds, infinite for never.

    fixed: seconds that somebody chose, 0 for never; None to choose it here from what the saves were measured to take.
    between: mean seconds between interruptions. slowdown: is to be told of every step.
    """

    def __init__(self, *, fixed: float | None, between: float) -> None:
        self._fixed, self._between = fixed, between
        self._pauses: deque[float] = deque(maxlen=_REMEMBERED)
        self._lengths: deque[float] = deque(maxlen=_REMEMBERED)
        self.slowdown = Slowdown()
        self._said = 0.0
        self.interval = (fixed or math.inf) if fixed is not None else min(FIRST_SECONDS, between / 10)

    @property
    def longest(self) -> float:
        """Seconds that the longest of the last saves took, until it was committed; 0 before there was any."""
        return max(self._lengths, default=0.0)

    def measured(self, *, pause: float, seconds: float) -> str:
        """A save was committed `seconds` after it began, for `pause` of which training waited.

        Returns why the interval is what it is now, where it is notably another than before.
        """
        self._pauses.append(pause)
        self._lengths.append(seconds)
        if self._fixed is not None:
            return ""
        # The median: one save that met a busy disk does not change the rhythm.
        pause, seconds = statistics.median(self._pauses), statistics.median(self._lengths)
        cost = pause + self.slowdown.share * max(0.0, seconds - pause)
        best = optimum(cost, self._between)
        least, most = self._bounds(seconds)
        self.interval = max(least, min(most, best))
        if self._said and 1 / _NOTABLE < self.interval / self._said < _NOTABLE:
            return ""
        self._said = self.interval
        return self._sum(cost=cost, pause=pause, seconds=seconds, best=best)

    def _bounds(self, seconds: float) -> tuple[float, float]:
        # Where interruptions are frequent, the usual minimum would lose a good part of the work between them.
        return max(min(LEAST_SECONDS, self._between / 20), SAVES_APART * seconds), MOST_SECONDS

    def _sum(self, *, cost: float, pause: float, seconds: float, best: float) -> str:
        bound = ""
        if self.interval > best:
            least = SAVES_APART * seconds
            bound = f", raised to {SAVES_APART:g} saves' length" if self.interval <= least else ", raised to the least"
        elif self.interval < best:
            bound = ", cut to the most"
        how = "measured" if self.slowdown.measured else "assumed"
        loss = cost / self.interval + (self.interval / 2 + seconds) / self._between
        behind = f"{self.slowdown.share:.0%}, as {how}, of {_short(max(0.0, seconds - pause))} behind it"
        return (
            f"a checkpoint every {_short(self.interval)}: a save takes {_short(cost)} of training (a pause of "
            f"{_short(pause)} and {behind}), an interruption is assumed every {self._between / 3600:.3g} h (setting "
            f"interruption_hours); the optimum, about sqrt(2 x {_short(cost)} x {_short(self._between)}), is "
            f"{_short(best)}{bound}; expected loss {loss:.2%}"
        )


def _short(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
