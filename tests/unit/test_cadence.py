"""The interval between checkpoints: the loss it leads to is the least there is, within its bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.contract.settings import Settings
from moorage.errors import ConfigError
from moorage.training.cadence import FIRST_SECONDS, LEAST_SECONDS, MOST_SECONDS, Cadence, optimum
from moorage.training.slowdown import ASSUMED, Slowdown

HOURS = 3600.0


def wall_time(interval: float, cost: float, between: float) -> float:
    """Seconds that a second of work takes, where interruptions come at random (Daly 2006, equation 13, no restart)."""
    return between * math.expm1((interval + cost) / between) / interval


@given(st.floats(1e-3, 100.0), st.floats(60.0, 1e6))
def test_no_other_interval_ends_much_sooner(cost: float, between: float) -> None:
    best = optimum(cost, between)
    assert best > 0
    chosen = wall_time(best, cost, between)
    for factor in (0.3, 0.5, 0.7, 0.9, 1.1, 1.4, 2.0, 3.0):
        other = best * factor
        if (other + cost) / between < 50:
            assert chosen <= wall_time(other, cost, between) * (1.02 if cost < between / 4 else 1.2)


@given(st.floats(1e-3, 100.0), st.floats(1.0, 1e6))
def test_a_dearer_save_comes_less_often_and_a_worse_world_asks_for_more(cost: float, between: float) -> None:
    assert optimum(cost, between) <= optimum(2 * cost, between) * (1 + 1e-9) or 4 * cost > between
    assert optimum(cost, between) <= optimum(cost, 2 * between) * (1 + 1e-9)


def test_it_is_youngs_rule_where_saves_are_cheap() -> None:
    assert optimum(0.1, 6 * HOURS) == pytest.approx(math.sqrt(2 * 0.1 * 6 * HOURS), rel=0.01)
    # A costly dump: the higher orders matter.
    assert optimum(300.0, 24 * HOURS) == pytest.approx(math.sqrt(2 * 300 * 24 * HOURS) - 300 + 100, rel=0.01)
    assert optimum(10.0, 5.0) == 5.0


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), min_size=1, max_size=12), st.floats(10.0, 1000 * HOURS)
)
def test_the_interval_stays_within_its_bounds(saves: list[tuple[float, float]], between: float) -> None:
    cadence = Cadence(fixed=None, between=between)
    assert 0 < cadence.interval <= FIRST_SECONDS
    for pause, behind in saves:
        cadence.measured(pause=pause, seconds=pause + behind)
    last = sorted(pause + behind for pause, behind in saves[-5:])
    assert cadence.longest == last[-1]
    assert cadence.interval >= min(LEAST_SECONDS, between / 20)
    assert cadence.interval >= 2 * last[0]
    assert cadence.interval <= max(MOST_SECONDS, 2 * last[-1])


def test_the_choice_is_told_with_its_sum_and_again_only_when_it_changes() -> None:
    cadence = Cadence(fixed=None, between=6 * HOURS)
    told = cadence.measured(pause=0.8, seconds=67.0)
    cost = 0.8 + ASSUMED * 66.2
    assert cadence.interval == pytest.approx(optimum(cost, 6 * HOURS))
    assert told == (
        "a checkpoint every 561 s: a save takes 7.42 s of training (a pause of 0.8 s and 10%, as assumed, of 66.2 s "
        "behind it), an interruption is assumed every 6 h (setting interruption_hours); the optimum, about "
        "sqrt(2 x 7.42 s x 21600 s), is 561 s; expected loss 2.93%"
    )
    assert cadence.measured(pause=0.9, seconds=70.0) == ""
    assert [bool(cadence.measured(pause=4, seconds=200)) for _ in range(5)].count(True) == 1
    assert "raised to the least" in Cadence(fixed=None, between=6 * HOURS).measured(pause=0.001, seconds=0.01)
    assert "raised to 2 saves' length" in Cadence(fixed=None, between=6 * HOURS).measured(pause=0, seconds=3000)
    assert "cut to the most" in Cadence(fixed=None, between=1000 * HOURS).measured(pause=20, seconds=30)


def test_one_slow_save_does_not_change_the_rhythm() -> None:
    cadence = Cadence(fixed=None, between=6 * HOURS)
    for seconds in (10, 10, 10, 300, 10):
        cadence.measured(pause=0.5, seconds=seconds)
    assert cadence.interval == pytest.approx(optimum(0.5 + ASSUMED * 9.5, 6 * HOURS))
    assert cadence.longest == 300


def steps(slowdown: Slowdown, usual: float, behind: float, num: int, now: float = 0.0) -> float:
    """Training with one save: `num` steps before it and while it is under way, each so many seconds; when it is over.

    The step that holds the pause takes long, and so does the one in which the save ends.
    """
    for number in range(2 * num + 3):
        now += {0: 0.0, num + 1: 50.0, 2 * num + 2: 50.0}.get(number, usual if number <= num else behind)
        slowdown.step(now, saving=num < number < 2 * num + 2)
    return now


def test_what_a_save_takes_from_the_steps_behind_it_is_measured() -> None:
    slowdown = Slowdown()
    assert (slowdown.measured, slowdown.share) == (False, ASSUMED)
    now = steps(slowdown, 1.0, 1.25, num=4)
    assert (slowdown.measured, slowdown.share) == (False, ASSUMED), "too few steps to tell"
    steps(slowdown, 1.0, 1.25, num=2, now=now)
    assert slowdown.measured and slowdown.share == pytest.approx(0.2)
    faster = Slowdown()
    steps(faster, 1.0, 0.9, num=9)
    assert faster.share == 0.0


def test_a_measured_slowdown_counts_in_the_cost() -> None:
    cadence = Cadence(fixed=None, between=6 * HOURS)
    steps(cadence.slowdown, 1.0, 2.0, num=9)
    told = cadence.measured(pause=0.8, seconds=20.8)
    assert cadence.interval == pytest.approx(optimum(10.8, 6 * HOURS))
    assert "a pause of 0.8 s and 50%, as measured, of 20 s behind it" in told


@pytest.mark.parametrize(
    ("given_", "seconds", "interval"),
    [
        ({}, None, FIRST_SECONDS),
        ({"checkpoint_minutes": "auto"}, None, FIRST_SECONDS),
        ({"checkpoint_minutes": "2.5"}, 150.0, 150.0),
        ({"checkpoint_minutes": "0"}, 0.0, math.inf),
        ({"checkpoint_steps": "100"}, 0.0, math.inf),
        ({"checkpoint_steps": "100", "checkpoint_minutes": "1"}, 60.0, 60.0),
    ],
)
def test_what_somebody_chose_wins(given_: dict[str, str], seconds: float | None, interval: float) -> None:
    settings = Settings.read({}, {f"moorage_{name}": value for name, value in given_.items()})
    assert settings.checkpoint_seconds == seconds
    cadence = Cadence(fixed=settings.checkpoint_seconds, between=HOURS * settings.interruption_hours)
    assert cadence.interval == interval
    if seconds is not None:
        assert cadence.measured(pause=10, seconds=100) == "" and cadence.interval == interval


def test_a_program_may_give_minutes_as_a_number() -> None:
    assert Settings.read({}, {}, {"checkpoint_minutes": 5}).checkpoint_seconds == 300


@pytest.mark.parametrize("text", ["often", "-1", "nan", "inf", ""])
def test_an_interval_without_sense_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="checkpoint_minutes"):
        Settings.read({}, {"moorage_checkpoint_minutes": text})
