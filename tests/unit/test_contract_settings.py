"""Moorage's own settings: where they come from, which wins, and what a wrong one says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from moorage.contract.setting import INTERNAL
from moorage.contract.settings import Settings, is_setting
from moorage.errors import ConfigError


def test_the_job_wins_over_the_environment_over_the_program() -> None:
    defaults = {"strategy": "single", "max_restarts": 7, "seed": 1}
    env = {"MOORAGE_STRATEGY": "ddp", "MOORAGE_SEED": "2", "PATH": "/bin"}
    settings = Settings.read(env, {"moorage_strategy": '"fsdp"', "lr": "0.1"}, defaults)
    assert (settings.strategy, settings.max_restarts, settings.seed) == ("fsdp", 7, 2)
    assert Settings.read({}, {}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("compile", "True", True),
        ("compile", "1", True),
        ("grace", "30", 30.0),
        ("max_restarts", "0", 0),
        ("trackers", "tensorboard,mlflow", ("tensorboard", "mlflow")),
        ("trackers", '["tensorboard"]', ("tensorboard",)),
        ("best", "max:val_accuracy", "max:val_accuracy"),
        ("precision", "bf16", "bf16"),
    ],
)
def test_values_are_typed(name: str, text: str, value: Any) -> None:
    for settings in (
        Settings.read({f"MOORAGE_{name.upper()}": text}, {}),
        Settings.read({}, {f"moorage_{name}": text}),
    ):
        assert getattr(settings, name) == value
        assert type(getattr(settings, name)) is type(value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"MOORAGE_STRATEGI": "ddp"}, ["environment variable MOORAGE_STRATEGI", "did you mean strategy?"]),
        ({"moorage_max_restart": "1"}, ["hyperparameter moorage_max_restart", "did you mean max_restarts?"]),
        ({"MOORAGE_XYZZYX": "1"}, ["no setting 'xyzzyx'", "the settings are", "strategy"]),
        ({"moorage_strategy": "fdsp"}, ["moorage_strategy", "'fdsp' is not a strategy", "did you mean fsdp?"]),
        ({"moorage_strategy": "zero3"}, ["choose one of auto, single, ddp, fsdp, hsdp"]),
        ({"moorage_grace": "long"}, ["moorage_grace", "'long'", "float", "110.0"]),
        ({"moorage_grace": "0"}, ["moorage_grace", "0.0 is not a grace", "Seconds from SIGTERM"]),
        ({"moorage_grace": "inf"}, ["moorage_grace"]),
        ({"moorage_grace": "nan"}, ["moorage_grace"]),
        ({"MOORAGE_CONTROL_PORT": "70000"}, ["MOORAGE_CONTROL_PORT", "70000"]),
        ({"moorage_keep": "0"}, ["moorage_keep"]),
        ({"moorage_best": "val_loss"}, ["moorage_best", "min:val_loss"]),
        ({"moorage_best": "None"}, ["moorage_best", "leave it out"]),
        ({"moorage_compile": "maybe"}, ["moorage_compile", "bool"]),
    ],
)
def test_a_wrong_setting_names_itself_and_the_way_out(given: dict[str, str], says: list[str]) -> None:
    env = {key: value for key, value in given.items() if key.isupper()}
    hyperparameters = {key: value for key, value in given.items() if not key.isupper()}
    with pytest.raises(ConfigError) as caught:
        Settings.read(env, hyperparameters)
    for part in says:
        assert part in str(caught.value)


def test_a_wrong_default_names_the_program_that_gave_it() -> None:
    with pytest.raises(ConfigError, match=r"moorage\.start\(strategi=\.\.\.\).*did you mean strategy"):
        Settings.read({}, {}, {"strategi": None})
    with pytest.raises(ConfigError, match=r"moorage\.start\(max_restarts=\.\.\.\)"):
        Settings.read({}, {}, {"max_restarts": -1})


def test_what_says_nothing_is_the_default() -> None:
    assert Settings.read({"MOORAGE_STRATEGY": "", **dict.fromkeys(INTERNAL, "x")}, {}, {"seed": None}) == Settings()


def test_a_dash_is_an_underscore() -> None:
    assert is_setting("moorage-max-restarts")
    assert Settings.read({}, {"moorage-max-restarts": "1"}).max_restarts == 1


def test_every_setting_says_what_it_is() -> None:
    for field in dataclasses.fields(Settings):
        assert field.metadata["doc"].endswith(".")
        check = field.metadata["check"]
        assert check is None or check(field.default)
        choices = field.metadata["choices"]
        assert not choices or field.default in choices
