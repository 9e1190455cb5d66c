"""What a tuning job searches: ranges as they are spelled, the values that are drawn, and what is refused."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.cloud import space
from moorage.cloud.space import Categorical, Continuous, Integer
from moorage.cloud.store import distribution, text_of
from moorage.cloud.tune_rules import findings
from moorage.cloud.tuning import Objective, Tuning, job_name, rungs, tuning
from moorage.errors import ConfigError
from moorage.rehearsal.jobfile import describe

NOW = datetime(2026, 1, 31, 12)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1e-4:1e-1:log", Continuous(name="x", low=1e-4, high=0.1, scaling="Logarithmic")),
        ("0.9:0.999:reverse-log", Continuous(name="x", low=0.9, high=0.999, scaling="ReverseLogarithmic")),
        ("1:8", Integer(name="x", low=1, high=8)),
        ("1:8:linear", Integer(name="x", low=1, high=8, scaling="Linear")),
        ("-2:2", Integer(name="x", low=-2, high=2)),
        ("1.0:8", Continuous(name="x", low=1.0, high=8.0)),
        ("1e2:1e3", Continuous(name="x", low=100.0, high=1000.0)),
        ("16,32, 64", Categorical(name="x", values=("16", "32", "64"))),
        ("s3://a/b,s3://c/d", Categorical(name="x", values=("s3://a/b", "s3://c/d"))),
    ],
)
def test_a_range_is_what_it_looks_like(text: str, meant: space.Range) -> None:
    assert space.parse("x", text) == meant
    assert space.parse("x", space.described(meant)) == meant


@pytest.mark.parametrize("text", ["0.1", "adam", "a:b", "1:2:3", "1:", ":", "nan:1.0", "0:inf", "1e999:2"])
def test_what_is_no_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        space.parse("lr", text)
    assert "lr" in str(refused.value) and refused.value.fix


def test_a_grid_is_every_combination_the_last_changing_fastest() -> None:
    ranges = (Categorical(name="a", values=("1", "2")), Categorical(name="b", values=("x", "y")))
    made = list(space.combinations(ranges))
    assert made == [{"a": "1", "b": "x"}, {"a": "1", "b": "y"}, {"a": "2", "b": "x"}, {"a": "2", "b": "y"}]
    assert space.grid_size(ranges) == len(made)


numbers = st.tuples(st.floats(1e-6, 0.98), st.floats(1e-6, 0.98)).filter(lambda pair: pair[0] < pair[1])


@given(numbers, st.sampled_from(["Auto", "Linear", "Logarithmic", "ReverseLogarithmic"]), st.floats(0, 1))
def test_what_is_drawn_lies_in_the_range_and_survives_the_way_as_text(
    ends: tuple[float, float], scaling: space.Scaling, at: float
) -> None:
    one = Continuous(name="x", low=ends[0], high=ends[1], scaling=scaling)
    drawn = distribution(one)
    value = float(text_of(one, drawn.low + at * (drawn.high - drawn.low)))
    assert ends[0] <= value <= ends[1]


def test_a_reverse_logarithmic_range_is_searched_close_to_one() -> None:
    one = Continuous(name="momentum", low=0.9, high=0.999, scaling="ReverseLogarithmic")
    drawn = distribution(one)
    assert drawn.log and (drawn.low, drawn.high) == (pytest.approx(0.001), pytest.approx(0.1))
    assert float(text_of(one, 0.001)) == pytest.approx(0.999)


def test_the_name_leaves_room_for_those_of_the_trials() -> None:
    assert job_name("digits", NOW) == "digits-260131-120000"
    assert len(job_name("a" * 100, NOW)) == 32
    assert job_name("_!", NOW) == "job-260131-120000"


@pytest.mark.parametrize(
    ("least", "most", "made"), [(1, 27, [1, 3, 9]), (1, 9, [1, 3]), (2, 20, [2, 6, 18]), (5, 5, [])]
)
def test_rungs(least: int, most: int, made: list[int]) -> None:
    assert list(rungs(least, most)) == made


def described(tmp_path: Path, text: str) -> Tuning:
    (tmp_path / "moorage.toml").write_text(text, encoding="utf-8")
    return tuning(describe(tmp_path / "moorage.toml"), NOW)


def test_the_job_file_says_it_all(tmp_path: Path) -> None:
    found = described(
        tmp_path,
        """
        program = "train.py"
        [hyperparameters]
        num_epochs = 27
        [tune]
        objective = "min:val_loss"
        strategy = "hyperband"
        max_run = "2h"
        [tune.ranges]
        lr = "1e-4:1e-1:log"
        batch_size = [16, 32]
        amsgrad = [true, false]
        """,
    )
    assert found.name == "train-260131-120000"
    assert found.objective == Objective(metric="val_loss", maximize=False)
    assert (found.max_resource, found.resource, found.total, found.max_run) == (27, "num_epochs", 10, 7200.0)
    assert found.ranges[1:] == (
        Categorical(name="batch_size", values=("16", "32")), Categorical(name="amsgrad", values=("true", "false")),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[tune.ranges]\nlr = '1:2'", "no objective"),
        ("[tune]\nobjective = 'accuracy'", "names no direction"),
        ("[tune]\nobjective = 'max:a'\n[tune.ranges]\nlr = '0.1'", "moorage.toml, line 4: the range lr="),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        described(tmp_path, text)


LR = Continuous(name="lr", low=1e-4, high=0.1, scaling="Logarithmic")
SIZES = Categorical(name="batch_size", values=("16", "32"))
METRICS = {"val_accuracy": "val_accuracy=([0-9.]+)", "train_loss": "loss=([0-9.]+)"}


def a(objective: str = "max:val_accuracy", ranges: tuple[space.Range, ...] = (LR, SIZES), **given: object) -> Tuning:
    return Tuning(name="digits", objective=Objective.parse(objective), ranges=ranges, **given)


@pytest.mark.parametrize(
    ("given", "hyperparameters", "codes"),
    [
        (a(), {}, []),
        (a("max:val_acuracy"), {}, ["objective-undefined"]),
        (a("min:train_loss"), {}, ["objective-training"]),
        (a(ranges=()), {}, ["no-ranges"]),
        (a(ranges=tuple(Integer(name=f"p{n}", low=1, high=2) for n in range(31))), {}, ["too-many-ranges"]),
        (a(), {f"p{n}": "1" for n in range(99)}, ["too-many-ranges"]),
        (a(), {**{f"p{n}": "1" for n in range(98)}, "lr": "1"}, []),
        (a(ranges=(Integer(name="sagemaker_program", low=1, high=2),)), {}, ["range-name"]),
        (a(ranges=(Integer(name="two words", low=1, high=2),)), {}, ["range-name"]),
        (a(ranges=(Integer(name="moorage_accumulation", low=1, high=2),)), {}, []),
        (a(ranges=(Categorical(name="x", values=tuple(map(str, range(31)))),)), {}, ["too-many-values"]),
        (a(ranges=(Categorical(name="x", values=("a", "a")),)), {}, ["value-twice"]),
        (a(ranges=(Categorical(name="x", values=("a", "")),)), {}, ["value-length"]),
        (a(ranges=(Integer(name="x", low=2, high=2),)), {}, ["range-empty"]),
        (a(ranges=(Continuous(name="x", low=0.0, high=1.0, scaling="Logarithmic"),)), {}, ["range-log"]),
        (a(ranges=(Integer(name="x", low=0, high=9, scaling="Logarithmic"),)), {}, ["range-log"]),
        (a(ranges=(Continuous(name="x", low=0.5, high=1.0, scaling="ReverseLogarithmic"),)), {}, ["range-reverse-log"]),
        (a(ranges=(Integer(name="x", low=0, high=1, scaling="ReverseLogarithmic"),)), {}, ["range-reverse-log"]),
        (a(strategy="grid"), {}, ["grid-continuous"]),
        (a(strategy="grid", ranges=(SIZES,)), {}, []),
        (a(strategy="grid", ranges=(SIZES,), trials=3), {}, ["grid-size"]),
        (a(trials=4, parallel=5), {}, ["parallel"]),
        (a(trials=4, parallel=3), {}, ["parallel-bayesian"]),
        (a(trials=4, parallel=4, strategy="random"), {}, []),
        (a(warm_start=("digits",)), {}, ["warm-start-itself"]),
        (a(strategy="hyperband", max_resource=27), {}, []),
        (a(strategy="hyperband", max_resource=27, early_stopping=True), {}, ["hyperband-early-stopping"]),
        (a(strategy="hyperband"), {}, ["hyperband-max-resource"]),
        (a(strategy="hyperband", min_resource=9, max_resource=3), {}, ["hyperband-resources"]),
        (a(strategy="hyperband", max_resource=3), {}, ["hyperband-short"]),
        (a(strategy="hyperband", max_resource=27), {"epochs": "50"}, ["hyperband-epochs"]),
        (a(max_resource=27), {}, ["resource-without-hyperband"]),
        (a(strategy="random", early_stopping=True), {}, []),
    ],
)
def test_the_rules(given: Tuning, hyperparameters: dict[str, str], codes: list[str]) -> None:
    found = findings(given, metrics=METRICS, hyperparameters=hyperparameters)
    assert [one.code for one in found] == codes
    assert all(one.what and one.fix for one in found)


def test_a_trial_cannot_be_given_arguments_and_a_misspelt_objective_names_the_nearest() -> None:
    assert [one.code for one in findings(a(), metrics=METRICS, hyperparameters={}, arguments=["-v"])] == [
        "tune-arguments"
    ]
    (found,) = findings(a("max:val_acuracy"), metrics=METRICS, hyperparameters={})
    assert "did you mean val_accuracy?" in found.why
