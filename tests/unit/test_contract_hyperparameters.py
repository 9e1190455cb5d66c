"""The program's hyperparameters: typed, frozen, and as arguments."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sagemaker_training import mapping

from moorage.contract.hyperparameters import KEY, Hyperparameters, argument, arguments
from moorage.errors import ConfigError

KEYS = st.from_regex(KEY, fullmatch=True)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def official(given: dict[str, str]) -> list[str]:
    """What the official toolkit's arguments are: JSON decoded if it can be, then to_cmd_args."""
    decoded: dict[str, Any] = {}
    for key, text in given.items():
        try:
            decoded[key] = json.loads(text)
        except ValueError:
            decoded[key] = text
    return list(mapping.to_cmd_args(decoded))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=5,
).map(json.dumps)


@given(given=st.dictionaries(KEYS, TEXTS | JSON, max_size=4))
def test_arguments_are_those_of_the_official_toolkit(given: dict[str, str]) -> None:
    assert list(arguments(given)) == official(given)


def test_nothing_in_a_value_is_more_than_text() -> None:
    hostile = "a \"b\" 'c'\n; touch x $(touch y) `z` \\ --lr 5"
    argv = arguments({"x": hostile, "long": json.dumps(hostile), "n": "null", "d": '{"b": 1, "a": "2"}'})
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    run = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == ["-d", "a=2,b=1", "--long", hostile, "-n", "", "-x", hostile]


@pytest.mark.parametrize("key", ["", "-x", "a b", "a=b", "a;b", "$(x)", "a\nb", "ä", "--a", "a/b", "x" * 257])
def test_a_key_that_could_be_read_otherwise_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="cannot become an argument") as caught:
        arguments({key: "1"})
    assert repr(key) in str(caught.value)


@pytest.mark.parametrize(("value", "why"), [("a\0b", "NUL"), ("\ud800", "surrogate")])
def test_a_value_that_no_command_line_carries_is_refused(value: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"'note' cannot become an argument.*{why}"):
        arguments({"note": value})


def test_values_have_the_type_of_their_defaults() -> None:
    hp = Hyperparameters.resolve(
        {"lr": '"0.5"', "epochs": "3", "flag": "True", "layers": "64,128"},
        {"lr": 1e-3, "epochs": 1, "flag": False, "layers": [1], "name": "adam"},
    )
    assert (hp.lr, hp.epochs, hp.flag, hp.layers, hp.name) == (0.5, 3, True, [64, 128], "adam")
    assert hp.as_dict() == {"lr": 0.5, "epochs": 3, "flag": True, "layers": [64, 128], "name": "adam"}
    assert (hp["lr"], len(hp), next(iter(hp)), "lr" in hp, "x" in hp) == (0.5, 5, "lr", True, False)


def test_a_dash_matches_an_underscore() -> None:
    assert Hyperparameters.resolve({"batch-size": "8"}, {"batch_size": 1}).batch_size == 8
    assert Hyperparameters.resolve({}, {"batch_size": 1}, ["--batch-size", "8"]).batch_size == 8


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--lr", "0.5"], (0.5, False)),
        (["--lr=0.5", "--flag"], (0.5, True)),
        (["--flag", "--lr", "0.5"], (0.5, True)),
        (["--flag", "false"], (0.1, False)),
        (["data.csv", "--lr", "-0.5"], (-0.5, False)),
        (["--lr", "0.5", "--lr", "0.25"], (0.25, False)),
        (["--", "-1", "-"], (0.1, False)),
    ],
)
def test_the_command_line_wins_over_the_file(argv: list[str], expected: tuple[float, bool]) -> None:
    hp = Hyperparameters.resolve({"lr": "0.1"}, {"lr": 1.0, "flag": False}, argv)
    assert (hp.lr, hp.flag) == expected


@given(given=st.dictionaries(KEYS.filter(lambda key: key.islower() and key.isalnum()), TEXTS, max_size=4))
def test_the_arguments_made_of_the_file_change_nothing(given: dict[str, str]) -> None:
    declared = dict.fromkeys(given, "")
    try:
        alone = Hyperparameters.resolve(given, declared)
    except ConfigError:  # a name that the class itself has
        return
    assert Hyperparameters.resolve(given, declared, arguments(given)) == alone
    assert Hyperparameters.resolve(given, {}, arguments(given)).undeclared == given


def test_types_survive_the_way_through_the_command_line() -> None:
    given = {"version": "1.10", "table": '{"a": 1}', "nothing": "null", "x": "--y", "betas": "[0.9, 0.99]"}
    declared: dict[str, Any] = {"version": "", "table": {}, "nothing": None, "x": "", "betas": ()}
    hp = Hyperparameters.resolve(given, declared, [*arguments(given), "--version", "2"])
    assert hp.as_dict() == {"version": "2", "table": {"a": 1}, "nothing": None, "x": "--y", "betas": (0.9, 0.99)}


def test_what_the_program_did_not_declare_is_reported() -> None:
    hp = Hyperparameters.resolve({"learning_rte": "1", "zzz": "2"}, {"learning_rate": 0.1}, ["--epoch=3"])
    assert hp.undeclared == {"learning_rte": "1", "zzz": "2", "epoch": "3"}
    assert (hp.nearest("learning_rte"), hp.nearest("zzz")) == ("learning_rate", "")


@pytest.mark.parametrize(
    ("given", "argv", "label"), [({"lr": "fast"}, [], "hyperparameter lr"), ({}, ["--lr", "fast"], "argument --lr")]
)
def test_a_value_that_does_not_convert_says_which(given: dict[str, str], argv: list[str], label: str) -> None:
    with pytest.raises(ConfigError, match=f"{label}: cannot read 'fast' as float"):
        Hyperparameters.resolve(given, {"lr": 0.1}, argv)


def test_secrets_are_not_in_the_repr() -> None:
    hp = Hyperparameters.resolve({"api_key": "hunter22"}, {"api_key": "", "lr": 0.1, "db": {"password": "hunter22"}})
    assert hp.api_key == "hunter22"
    assert "hunter22" not in repr(hp) + json.dumps(hp.shown())
    assert "lr=0.1" in repr(hp)


def test_they_are_frozen_and_can_be_copied_and_sent() -> None:
    hp = Hyperparameters.resolve({"lr": "0.5"}, {"lr": 0.1})
    with pytest.raises(AttributeError, match="frozen"):
        hp.lr = 1
    with pytest.raises(AttributeError, match="frozen"):
        del hp.lr
    assert copy.deepcopy(hp) == pickle.loads(pickle.dumps(hp)) == hp  # noqa: S301
    assert hp.lr == 0.5


def test_a_misspelt_attribute_names_the_nearest() -> None:
    hp = Hyperparameters.resolve({}, {"learning_rate": 0.1})
    with pytest.raises(AttributeError, match=r"'learning_rte' was declared; did you mean 'learning_rate'\?"):
        _ = hp.learning_rte
    assert not hasattr(hp, "momentum")


def test_a_name_that_the_object_has_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be named 'shown'"):
        Hyperparameters.resolve({}, {"shown": 1})


def test_a_dictionary_loses_nothing_on_the_way() -> None:
    assert argument("{}") == ""
    assert argument("[" * 3000) == "[" * 3000
