"""What happens in a study, as it happens, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from moorage.cloud.store import State


@dataclass(frozen=True, kw_only=True)
class Told:
    """number: of the trial. running: trials at this moment. best: number and value, None as long as there is none."""

    number: int
    name: str
    running: int
    best: tuple[int, float] | None


@dataclass(frozen=True, kw_only=True)
class Began(Told):
    """again: it goes on where its study was cut."""

    hyperparameters: Mapping[str, str] = field(repr=False)
    again: bool


@dataclass(frozen=True, kw_only=True)
class Reported(Told):
    """count: of its reports so far. stopped: this one had it stopped."""

    value: float
    count: int
    stopped: bool


@dataclass(frozen=True, kw_only=True)
class Over(Told):
    """state: None where it was cut, and goes on with the study. value: the best of its reports. over: trials that are,
    this one with them."""

    state: State | None
    value: float | None
    count: int
    over: int
    why: str


Tell = Callable[[Told], None]
