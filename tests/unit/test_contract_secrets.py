"""What is never logged, wherever it stands."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.contract.secrets import (
    HIDDEN,
    is_secret_key,
    known_secrets,
    redact,
    redact_argv,
    redact_value,
    redacted,
)

SECRET = 'hunter2"p@ss/ wörd\n'


SECRET_KEYS = (
    "password db_password PASSWORD apiKey api-key API_KEY APIKey HFToken HF_TOKEN token AWS_SECRET_ACCESS_KEY "
    "AWS_SESSION_TOKEN AWS_CONTAINER_AUTHORIZATION_TOKEN SM_HP_API-KEY wandb.api_key credentials db_pass github_pat "
    "private_key_path client_secret auth auth_token_type access_keys"
)
OTHER_KEYS = (
    "max_tokens tokenizer num_tokens eos_token pad_token_id token_dim tokens_per_step keypoints author key keys lr "
    "secretary authors batch_size passes num_passes SM_HPS compass monkey PWD OLDPWD"
)


@pytest.mark.parametrize("key", SECRET_KEYS.split())
def test_keys_of_secrets(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize("key", OTHER_KEYS.split())
def test_keys_of_everything_else(key: str) -> None:
    assert not is_secret_key(key)


@pytest.mark.parametrize(
    "secret",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_abcdefghijklmnopqrstuvwxyz",
        "github_pat_11ABCDEFGHIJKLMNOPQRST",
        "glpat-abcdefghijklmnop",
        "hf_abcdefghijklmnopqrstuvwxyz",
        "sk-abcdefghijklmnop1234",
        "xoxb-123456789012-abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----",
    ],
    ids=lambda text: text[:8],
)
def test_text_that_looks_like_a_secret(secret: str) -> None:
    assert redact(f"before {secret} after") == f"before {HIDDEN} after"
    assert redacted("note", secret) == HIDDEN


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:hunter2@host/simple", f"https://{HIDDEN}@host/simple"),
        ("https://user:p@ss/w@host/x", f"https://{HIDDEN}@host/x"),
        ("https://0123456789abcdef@host/x", f"https://{HIDDEN}@host/x"),
        ("GET /o?X-Amz-Signature=abc&a=1", f"GET /o?X-Amz-Signature={HIDDEN}&a=1"),
        ("Authorization: Bearer abcdefghijklmnopqrst", f"Authorization: Bearer {HIDDEN}"),
        ("login(password='hunter 2', lr=1)", f"login(password='{HIDDEN}', lr=1)"),
        ("curl --password=hunter2 x", f"curl --password={HIDDEN} x"),
        ('{"api_key": "hunter2", "lr": 1}', f'{{"api_key": "{HIDDEN}", "lr": 1}}'),
    ],
)
def test_secrets_in_free_text(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@github.com/a/b",
        "http://127.0.0.1:8080/a?mail=a@b",
        "connect to http://host:80/a then mail me@example.org",
        "unexpected token: x",
        "max_tokens=5 eos_token=</s>",
        "loss=0.5, lr=1e-3",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_known_secrets_are_cut_in_every_form() -> None:
    given = {"password": json.dumps(SECRET), "lr": "0.1", "config": json.dumps({"db": {"token": "abcdef123"}})}
    known = known_secrets(given)
    for form in (SECRET, repr(SECRET), json.dumps(SECRET), quote(SECRET, safe=""), "abcdef123"):
        assert "hunter2" not in redact(f"error: {form}!", known)
        assert "abcdef123" not in redact(f"error: {form}!", known)
    assert redact("lr is 0.1", known) == "lr is 0.1"


def test_a_short_secret_would_garble_everything_else() -> None:
    assert known_secrets({"password": "a"}) == ()
    assert redact("abc", ["", "b"]) == f"a{HIDDEN}c"


def test_the_longest_is_cut_first() -> None:
    known = known_secrets({"token": "abcdef", "password": "abcdefghij"})
    assert redact("abcdefghij", known) == HIDDEN


def test_json_is_searched_to_its_depth() -> None:
    value = {"a": [{"password": "x1", "lr": 1}], "b": json.dumps({"api_key": "x2", "c": None}), "auth": {"d": "x3"}}
    shown = redact_value(value)
    assert not any(secret in json.dumps(shown) for secret in ("x1", "x2", "x3"))
    assert shown["a"][0]["lr"] == 1
    assert json.loads(shown["b"]) == {"api_key": HIDDEN, "c": None}
    assert "x1" not in redacted("SM_HPS", json.dumps(value))
    deeper = redact_value({"SM_HPS": json.dumps({"credentials": [{"user": "x4"}], "password": 'x5"x6'})})
    assert json.loads(deeper["SM_HPS"]) == {"credentials": HIDDEN, "password": HIDDEN}


def test_command_lines() -> None:
    argv = ["train.py", "--api-key", "x1", "--lr", "0.1", "--token=x2", "--password", "--verbose"]
    assert redact_argv(argv) == [
        "train.py", "--api-key", HIDDEN, "--lr", "0.1", f"--token={HIDDEN}", "--password", HIDDEN,
    ]  # fmt: skip


@given(secret=st.text(min_size=6), around=st.text())
def test_a_known_secret_never_survives(secret: str, around: str) -> None:
    known = known_secrets({"password": secret})
    assert secret not in redact(around.replace(secret, "") + secret + around.replace(secret, ""), known).replace(
        HIDDEN, ""
    )


@given(text=st.text())
def test_redacting_is_safe_for_any_text(text: str) -> None:
    redact(text)
    redacted("key", text)
    is_secret_key(text)
    known_secrets({"password": text})
