"""How the report writes numbers and times, and where an axis has its ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise


def seconds_text(seconds: float) -> str:
    """`0.4 s`, `42.1 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds < 0:
        return "−" + seconds_text(-seconds)
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def number_text(value: float) -> str:
    """Four digits that count, as a person writes them."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:.4g}"


def named(facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Lines of a terminal, the names in a column of their own."""
    yield from (f"  {name:<14} {text}" for name, text in facts)


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def money_text(value: float) -> str:
    """Enough digits that a job of seconds does not cost 0.00."""
    size = abs(value)
    text = f"{size:,.2f}" if size >= 1 else f"{size:.4f}" if size >= 0.001 else f"{size:.6f}"
    return f"−${text}" if value < 0 else f"${text}"


def percent_text(share: float, decimals: int = 0) -> str:
    return f"{100 * share:.{decimals}f} %".replace("-", "−")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` and, where the range is not empty, two at least."""
    if not high > low:
        return [low]
    return _between(low, high, most, [factor * 10.0**power for power in _powers(high - low) for factor in (1, 2, 5)])


def time_ticks(length: float, most: int = 5) -> list[float]:
    """Seconds from 0 to `length` that a clock shows as round."""
    if length <= 90:
        return ticks(0.0, length, most)
    sizes = [15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200]
    return _between(0.0, length, most, [*sizes, *(86400 * days for days in (1, 2, 5, 10, 20, 50, 100, 200, 500))])


def time_tick_text(seconds: float, length: float) -> str:
    """`20 s`, `3:30 min`, `2:05 h`, `3 d`: in one unit for an axis of `length` seconds."""
    if length <= 90:
        return f"{seconds:g} s"
    if length <= 2 * 3600:
        whole = round(seconds)
        return f"{whole // 60}:{whole % 60:02d} min"
    if length <= 3 * 86400:
        minutes = round(seconds / 60)
        return f"{minutes // 60}:{minutes % 60:02d} h"
    return f"{seconds / 86400:g} d"


def tick_texts(values: Sequence[float]) -> list[str]:
    """All with as many decimals as the closest two need."""
    apart = min((b - a for a, b in pairwise(values)), default=1.0)
    biggest = max(map(abs, values), default=0.0)
    if biggest >= 1e6 or 0 < biggest < 1e-3:
        return [f"{value:.3g}" for value in values]
    decimals = max(0, -math.floor(math.log10(apart) + 1e-9)) if apart > 0 else 0
    return [f"{value + 0.0:.{decimals}f}" for value in values]


def _powers(span: float) -> range:
    power = math.floor(math.log10(span))
    return range(power - 2, power + 2)


def _between(low: float, high: float, most: int, sizes: Sequence[float]) -> list[float]:
    for size in sizes:
        first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
        if last - first + 1 <= most:
            break
    return [number * size for number in range(first, last + 1)]
