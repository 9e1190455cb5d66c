"""What must never be logged: values whose key or text looks like a secret."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping

HIDDEN = "********"

# Whole words of a key: `api_key` and `apiKey` are secrets, `max_tokens`, `tokenizer` and `keypoints` are not.
_WORDS = frozenset(
    {
        "password",
        "passwd",
        "passphrase",
        "pwd",
        "secret",
        "secrets",
        "token",
        "credential",
        "credentials",
        "apikey",
        "auth",
        "authorization",
    }
)
_PAIRS = frozenset(
    {
        ("api", "key"),
        ("access", "key"),
        ("private", "key"),
        ("secret", "key"),
        ("account", "key"),
        ("signing", "key"),
        ("encryption", "key"),
        ("license", "key"),
    }
)
_SPLIT = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")

_TEXT = re.compile(
    r"""
      \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                       # AWS access key id
    | \b(?:ghp|gho|ghs|ghu|ghr)_[A-Za-z0-9]{20,}          # GitHub
    | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \bglpat-[A-Za-z0-9_\-]{16,}                         # GitLab
    | \bhf_[A-Za-z0-9]{20,}                               # Hugging Face
    | \bsk-[A-Za-z0-9_\-]{16,}                            # OpenAI, Anthropic
    | \bxox[abprs]-[A-Za-z0-9\-]{10,}                     # Slack
    | \beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*   # JSON web token
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----[\s\S]*?(?:-----END[^-]*-----|\Z)
    | (?<=://)[^/\s:@]+:[^/\s@]+(?=@)                     # user:password in a URL
    """,
    re.VERBOSE,
)


def is_secret_key(key: str) -> bool:
    words = tuple(word.lower() for word in _SPLIT.split(key) if word)
    return any(word in _WORDS for word in words) or any(pair in _PAIRS for pair in itertools.pairwise(words))


def redact(text: str, known: Iterable[str] = ()) -> str:
    """`text` without anything that looks like a secret, and without the `known` ones."""
    for value in known:
        text = text.replace(value, HIDDEN)
    return _TEXT.sub(HIDDEN, text)


def redacted(key: str, value: str) -> str:
    """`value` as it may be logged."""
    return HIDDEN if is_secret_key(key) else redact(value)


def known_secrets(*maps: Mapping[str, str]) -> tuple[str, ...]:
    """The values in `maps` whose key looks like a secret, longest first, to be cut from free text.

    Values under 6 characters are left: cutting them would garble every other word, and hide nothing.
    """
    found = {value for entries in maps for key, value in entries.items() if is_secret_key(key) and len(value) >= 6}
    return tuple(sorted(found, key=len, reverse=True))
