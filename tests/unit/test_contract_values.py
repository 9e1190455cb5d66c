"""One value for every client's encoding of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.contract.values import convert, decode, shown
from moorage.errors import ConfigError


def estimator_v2(value: Any) -> str:
    """SDK v2 `Estimator` without source_dir: str()."""
    return str(value)


def pytorch_v2(value: Any) -> str:
    """SDK v2 `PyTorch`: JSON, strings in quotes."""
    return json.dumps(value)


def trainer_v3(value: Any) -> str:
    """SDK v3 `ModelTrainer`: JSON, strings as they are."""
    return value if isinstance(value, str) else json.dumps(value)


CLIENTS = [estimator_v2, pytorch_v2, trainer_v3]
DEFAULTS: list[Any] = [True, 3, 0.5, "sgd", [1, 2], ["a"], (0.9, 0.999), (), {}, None]
client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)


@client
@pytest.mark.parametrize(
    ("value", "default"),
    [
        (True, False),
        (False, True),
        (3, 1),
        (-3, 1),
        (1e-3, 1.0),
        (3, 1.0),
        ("adam", "sgd"),
        ("007", "x"),
        ("a b; $(c) 'd'", "x"),
        ("1,2", "x"),
        ([1, 2], []),
        (["a", "b"], ["c"]),
        ([[1], [2, 3]], [[0]]),
        ({"a": 1, "b": [True, None]}, {}),
        (None, None),
        (None, "cosine"),
        (True, None),
        (3, None),
        ("adam", None),
    ],
    ids=repr,
)
def test_every_client_gives_the_same_typed_value(client: Callable[[Any], str], value: Any, default: Any) -> None:
    converted = convert(client(value), default, "key")
    assert converted == value
    if default is not None and value is not None:
        assert type(converted) is type(default)


@pytest.mark.parametrize("text", ["True", "true", '"true"', "1", '"True"', "1.0", " true "])
def test_a_flag_is_on(text: str) -> None:
    assert convert(text, False, "key") is True


@pytest.mark.parametrize("text", ["0.1", '"0.1"', "1e-1", ".1", '".1"', "10e-2"])
def test_a_number_in_quotes_is_a_number(text: str) -> None:
    assert convert(text, 1.0, "key") == 0.1


@pytest.mark.parametrize("text", ["64,128", "64, 128", "[64, 128]", '"[64, 128]"', "(64, 128)", '["64", "128"]'])
def test_the_elements_of_a_list_have_the_type_of_the_defaults(text: str) -> None:
    assert convert(text, (1, 2), "key") == (64, 128)


def test_one_value_is_a_list_of_one() -> None:
    assert convert("3", [1], "key") == [3]
    assert convert("adam", ["x"], "key") == ["adam"]
    assert convert("", ["x"], "key") == []


def test_a_word_stays_a_string_where_a_string_is_wanted() -> None:
    assert [convert(text, "x", "key") for text in ("true", "none", "1", "1.10", '"None"', "[1]")] == [
        "true", "none", "1", "1.10", "None", "[1]",
    ]  # fmt: skip


@given(
    value=st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.none()
    | st.lists(st.integers())
)
def test_json_and_python_text_mean_the_same(value: Any) -> None:
    for encode in CLIENTS:
        assert decode(encode(value)) == value


@given(
    text=st.text().filter(
        lambda text: text.strip()[:1] not in ("", '"', "'", "[", "(", "{") and text.strip() not in ("None", "null")
    )
)
def test_any_plain_text_is_itself_in_every_encoding(text: str) -> None:
    for encode in CLIENTS:
        assert convert(encode(text), "default", "key") == text


@given(text=st.text() | st.sampled_from(["[" * 3000, "1" * 5000, "1" + "0" * 400, "-", '"', "{'a': {}", "(1,", "nan"]))
def test_bad_text_is_only_ever_a_config_error(text: str) -> None:
    for default in DEFAULTS:
        try:
            convert(text, default, "key")
        except ConfigError as error:
            assert "key" in str(error)


@pytest.mark.parametrize(
    ("text", "default"),
    [
        ("abc", 1),
        ("0.5", 1),
        ("1" + "0" * 400, 1.0),
        ("inf", 1),
        ("true", 1),
        ("true", 1.0),
        ("2", True),
        ("abc", 0.5),
        ("null", 1),
        ("[1", [1]),
        ("[a]", (1,)),
        ("x,y", [1]),
        ("1", {}),
        ("abc", {}),
    ],
)
def test_what_does_not_convert_names_key_value_and_type(text: str, default: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(text, default, "hyperparameter lr")
    message = str(caught.value)
    assert "hyperparameter lr" in message
    assert text[:50] in message
    assert f"as {type(default).__name__}" in message
    assert repr(default) in message


def test_a_default_of_another_type_is_an_error_of_the_program() -> None:
    with pytest.raises(ConfigError, match="key: a default of type object"):
        convert("1", object(), "key")


def test_a_secret_is_not_shown_in_the_error() -> None:
    with pytest.raises(ConfigError) as caught:
        convert("hunter22", 1, "hyperparameter api_key")
    assert "hunter22" not in str(caught.value)
    assert len(shown("key", "x" * 5000)) < 150
