"""What a tuning job searches: ranges as flags and the job file spell them, and the values that a trial is given.

`1e-4:1e-1:log` is continuous, `1:8` has whole numbers, `16,32,64` are values. A scaling behind it: auto, linear, log,
reverse-log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from moorage.errors import ConfigError

Scaling = Literal["Auto", "Linear", "Logarithmic", "ReverseLogarithmic"]

_SCALINGS: dict[str, Scaling] = {
    "auto": "Auto", "linear": "Linear", "log": "Logarithmic", "logarithmic": "Logarithmic",
    "reverse-log": "ReverseLogarithmic", "reverselogarithmic": "ReverseLogarithmic",
}  # fmt: skip
_WHOLE = re.compile(r"[-+]?[0-9]+")
_WIDE = 100.0
"""High over low from which Auto is logarithmic here; how the platform chooses is not known."""
_AS = "give NAME=LOW:HIGH, as lr=1e-4:1e-1:log or layers=1:8, or NAME=VALUE,VALUE"


@dataclass(frozen=True, kw_only=True)
class Continuous:
    name: str
    low: float
    high: float
    scaling: Scaling = "Auto"


@dataclass(frozen=True, kw_only=True)
class Integer:
    name: str
    low: int
    high: int
    scaling: Scaling = "Auto"


@dataclass(frozen=True, kw_only=True)
class Categorical:
    name: str
    values: tuple[str, ...]


Numeric = Continuous | Integer
Range = Numeric | Categorical


def parse(name: str, text: str) -> Range:
    """One range as a flag spells it. Raises ConfigError."""
    if "," in text:
        return Categorical(name=name, values=tuple(part.strip() for part in text.split(",")))
    low, sign, rest = text.strip().partition(":")
    high, _, word = rest.partition(":")
    if not sign:
        raise ConfigError(
            f"the range {name}={text!r} is one value",
            why="there is nothing to search in it",
            fix=f"{_AS}; what does not change is a hyperparameter: -p {name}={text}",
        )
    scaling = _SCALINGS.get(word.strip().lower() or "auto")
    if scaling is None:
        raise ConfigError(f"the range {name}={text!r}: no scaling is named {word!r}", fix=f"one of {_words()}")
    if _WHOLE.fullmatch(low.strip()) and _WHOLE.fullmatch(high.strip()):
        return Integer(name=name, low=int(low), high=int(high), scaling=scaling)
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = math.nan, math.nan
    if not all(map(math.isfinite, bounds)):
        raise ConfigError(f"the range {name}={text!r} has no two numbers as its ends", fix=_AS)
    return Continuous(name=name, low=bounds[0], high=bounds[1], scaling=scaling)


def _words() -> str:
    return "auto, linear, log, reverse-log"


def combinations(ranges: Sequence[Range]) -> Iterator[dict[str, str]]:
    """All of a grid, the last range changing fastest. Every range has to be categorical."""
    known = [one for one in ranges if isinstance(one, Categorical)]
    for values in product(*(one.values for one in known)):
        yield {one.name: value for one, value in zip(known, values, strict=True)}


def grid_size(ranges: Sequence[Range]) -> int:
    return math.prod(len(one.values) for one in ranges if isinstance(one, Categorical))


def is_logarithmic(one: Numeric) -> bool:
    """Auto settled: logarithmic where both ends are positive and far apart."""
    if one.scaling == "Auto":
        return one.low > 0 and one.high / one.low >= _WIDE
    return one.scaling == "Logarithmic"


def spelled(value: Any) -> str:
    """One value as the trial's hyperparameters.json has it: a raw string, as a tuning job gives it."""
    return repr(value) if isinstance(value, float) else str(value)


def described(one: Range) -> str:
    """As a flag would spell it."""
    if isinstance(one, Categorical):
        return ",".join(one.values)
    word = next(word for word, scaling in _SCALINGS.items() if scaling == one.scaling)
    return f"{one.low}:{one.high}" + (f":{word}" if one.scaling != "Auto" else "")
