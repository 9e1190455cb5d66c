"""The settings of `serve`: whose names are known, which name wins, what a wrong one says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from moorage.contract.settings import OF_SERVE, Settings
from moorage.errors import ConfigError
from moorage.serving.settings import ServeSettings, port

NAMES = {field.name for field in dataclasses.fields(ServeSettings)}
TRAININGS = {field.name for field in dataclasses.fields(Settings)}


def test_nothing_said_is_the_defaults() -> None:
    assert ServeSettings.read({"PATH": "/bin", "MOORAGE_WORKERS": " "}) == ServeSettings()


def test_ours_win_over_the_official_names() -> None:
    env = {
        "SAGEMAKER_PROGRAM": "predict.py",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "3",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT": "20",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "6",
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv",
    }
    settings = ServeSettings.read(env)
    assert (settings.handler, settings.workers, settings.request_timeout) == ("predict.py", 3, 20.0)
    assert (settings.max_body_bytes, settings.default_accept) == (6 * 2**20, "text/csv")
    assert ServeSettings.read({**env, "MOORAGE_WORKERS": "2", "MOORAGE_HANDLER": "mine.py"}) == dataclasses.replace(
        settings, workers=2, handler="mine.py"
    )


def test_batch_transform_without_a_limit_still_has_ours() -> None:
    assert ServeSettings.read({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}) == ServeSettings()


def test_one_environment_may_hold_both() -> None:
    env = {"MOORAGE_MAX_RESTARTS": "1", "MOORAGE_MAX_QUEUE": "7", "MOORAGE_PRECISION": "bf16"}
    serving, training = ServeSettings.read(env), Settings.read(env, {})
    assert (serving.max_queue, serving.precision) == (7, "bf16")
    assert (training.max_restarts, training.precision) == (1, "bf16")


def test_training_knows_the_names_of_serve() -> None:
    assert OF_SERVE == NAMES - TRAININGS


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"MOORAGE_MAX_BATCHSIZE": "2"}, ["MOORAGE_MAX_BATCHSIZE", "did you mean max_batch_size?"]),
        ({"MOORAGE_MAX_RESTART": "2"}, ["MOORAGE_MAX_RESTART", "did you mean max_restarts?"]),
        ({"MOORAGE_XYZZYX": "2"}, ["'xyzzyx'", "the settings are", "max_queue"]),
        ({"MOORAGE_MAX_BATCH_SIZE": "0"}, ["0 is not a max_batch_size", "no batching"]),
        ({"MOORAGE_MAX_QUEUE": "many"}, ["MOORAGE_MAX_QUEUE", "'many'", "128"]),
        ({"MOORAGE_PRECISION": "fp8"}, ["'fp8' is not a precision", "fp32"]),
        ({"MOORAGE_DEVICE": "gpu"}, ["'gpu' is not a device", "cuda:1"]),
        ({"MOORAGE_METRICS_PORT": "70000"}, ["70000 is not a metrics_port"]),
        ({"MOORAGE_REQUEST_TIMEOUT": "nan"}, ["nan is not a request_timeout"]),
        ({"MOORAGE_EMF_DIMENSIONS": "Endpoint"}, ["'Endpoint' is not a emf_dimensions", "NAME=VALUE"]),
        ({"MOORAGE_DEFAULT_ACCEPT": "json"}, ["'json' is not a default_accept"]),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "two"}, ["environment variable SAGEMAKER_MODEL_SERVER_WORKERS", "'two'"]),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "-1"}, ["SAGEMAKER_MODEL_SERVER_WORKERS: -1 is not a workers"]),
    ],
)
def test_a_wrong_setting_names_itself_and_the_way_out(env: dict[str, str], says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ServeSettings.read(env)
    for part in says:
        assert part in str(caught.value)


def test_training_offers_the_names_of_serve() -> None:
    with pytest.raises(ConfigError, match=r"did you mean max_queue\?"):
        Settings.read({"MOORAGE_MAX_QUEU": "2"}, {})


def test_dimensions_are_pairs() -> None:
    settings = ServeSettings.read({"MOORAGE_EMF_DIMENSIONS": "Endpoint=digits, Variant=a=b,"})
    assert settings.dimensions == {"Endpoint": "digits", "Variant": "a=b"}
    assert ServeSettings().dimensions == {}


def test_a_batch_that_takes_longer_than_any_request_may_is_stuck() -> None:
    assert ServeSettings(request_timeout=5).stuck_seconds == 15
    assert ServeSettings(request_timeout=5, stuck_timeout=2).stuck_seconds == 2


@pytest.mark.parametrize(("given", "expected"), [({}, 8080), ({"SAGEMAKER_BIND_TO_PORT": "9000"}, 9000)])
def test_the_port_is_the_platforms(given: dict[str, str], expected: int) -> None:
    assert port(given) == expected


@pytest.mark.parametrize("text", ["0", "65536", "-1", "http", "8080.0", "８０"])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"SAGEMAKER_BIND_TO_PORT: {text!r} is not a port"):
        port({"SAGEMAKER_BIND_TO_PORT": text})


@pytest.mark.parametrize("field", dataclasses.fields(ServeSettings), ids=lambda field: field.name)
def test_every_setting_says_what_it_is(field: dataclasses.Field[Any]) -> None:
    assert field.metadata["doc"].endswith(".")
    check, choices = field.metadata["check"], field.metadata["choices"]
    assert check is None or check(field.default)
    assert not choices or field.default in choices


def test_the_page_has_every_setting_as_it_is() -> None:
    page = (Path(__file__).resolve().parent.parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(ServeSettings):
        default = f"{field.default:g}" if type(field.default) is float else str(field.default)
        shown = default.lower() if isinstance(field.default, bool) else default
        official = field.metadata["official"]
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{field.name}` |")]
        assert field.metadata["doc"] in row and (f"`{shown}`" in row or not shown) and official in row, row
