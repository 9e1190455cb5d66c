"""What must never be logged: values whose key or text looks like a secret."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

HIDDEN = "********"

SHORTEST = 6
"""Characters under which a known secret is not cut from free text: that would garble other words, and hide nothing."""

# Whole words of a key: `api_key` and `apiKey` are secrets, `max_tokens`, `tokenizer` and `keypoints` are not.
_SECRET_KEY = re.compile(
    r"""
    \b(?:
        password | passwd | passphrase | passcode | pwd | secrets? | token | credentials? | creds
      | apikeys? | auth | authorization | bearer | jwt
      | (?:api|access|private|secret|account|signing|encryption|license|ssh|storage)\ keys?
      | (?:api|access)\ tokens
      | (?:db|user|admin|root|redis|smtp)\ pass
      | (?:github|gitlab|azure)\ pat
    )\b
    """,
    re.VERBOSE,
)
# The tokens of a language model: eos_token, pad_token_id, token_dim.
_MODEL_TOKEN = re.compile(
    r"""
    \b(?:pad|bos|eos|eot|sep|cls|mask|unk|start|end|stop|image|audio|video|special|prefix|suffix|middle|extra|per
       |next|last|first|prompt|decoder)\ token\b
  | \btoken\ (?:ids?|dims?|types?|level|size|count|length|len|limit|budget|embeddings?|dropout|loss|mask)\b
    """,
    re.VERBOSE,
)
_SPLIT = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_TEXT = re.compile(
    r"""
      \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                       # AWS access key id
    | \b(?:ghp|gho|ghs|ghu|ghr)_[A-Za-z0-9]{20,}          # GitHub
    | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \bglpat-[A-Za-z0-9_\-]{16,}                         # GitLab
    | \bhf_[A-Za-z0-9]{20,}                               # Hugging Face
    | \bsk-[A-Za-z0-9_\-]{16,}                            # OpenAI, Anthropic
    | \bxox[abeprs]-[A-Za-z0-9\-]{10,}                    # Slack
    | \bpypi-[A-Za-z0-9_\-]{16,}
    | \bAIza[0-9A-Za-z_\-]{35}                            # Google
    | \beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*   # JSON web token
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----[\s\S]*?(?:-----END[^-]*-----|\Z)
    | (?<=://)[^\s/?#"'<>:]*:(?!\d+/)[^\s?#"'<>]*(?=@)   # user:password in a URL; unescaped '/' and '@' occur
    | (?<=://)[^\s/?#"'<>:@]{12,}(?=@)                    # token in a URL
    | (?<=hooks\.slack\.com/services/)[^\s"'<>]+
    | (?i:(?<=[?&]x-amz-signature=)|(?<=[?&]x-amz-security-token=)|(?<=[?&]sig=))[^&\s"'<>]+   # presigned URLs
    | (?i:(?<=\bbearer\ )|(?<=\bbasic\ ))[A-Za-z0-9+/._~\-]{16,}=*    # HTTP headers
    """,
    re.VERBOSE,
)
_ASSIGNED = re.compile(
    r"""(?P<key>[A-Za-z0-9_.\-]{3,64})(?P<sign>=|["']\s*:\s*)(?P<value>"[^"]*"|'[^']*'|[^\s,;&"')}\]]+)"""
)


def is_secret_key(key: str) -> bool:
    if key in ("PWD", "OLDPWD"):
        return False  # the shell's working folder, which would be cut out of every path
    words = " ".join(_SPLIT.sub(" ", key).lower().split())
    return bool(_SECRET_KEY.search(_MODEL_TOKEN.sub("", words)))


def redact(text: str, known: Iterable[str] = ()) -> str:
    """`text` without anything that looks like a secret, and without the `known` ones."""
    for value in known:
        if value:
            text = text.replace(value, HIDDEN)
    return _ASSIGNED.sub(_assigned, _TEXT.sub(HIDDEN, text))


def _assigned(match: re.Match[str]) -> str:
    """password=... and "password": "..." in free text."""
    if not is_secret_key(match["key"]):
        return match[0]
    quotes = match["value"][0] if match["value"][0] in "\"'" else ""
    return f"{match['key']}{match['sign']}{quotes}{HIDDEN}{quotes}"


def redacted(key: str, value: str) -> str:
    """`value` as it may be logged. A JSON value is searched to its depth."""
    if is_secret_key(key):
        return HIDDEN
    parsed = _json(value)
    return redact(value) if parsed is None else json.dumps(redact_value(parsed))


def redact_value(value: Any, known: Sequence[str] = ()) -> Any:
    """A JSON value with every secret in it hidden, those of an argv (`--password`, then its value) too."""
    if isinstance(value, str):
        parsed = _json(value)
        return redact(value, known) if parsed is None else json.dumps(redact_value(parsed, known))
    if isinstance(value, Mapping):
        return {k: HIDDEN if is_secret_key(str(k)) else redact_value(v, known) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [
            HIDDEN if _names_secret(before) else redact_value(item, known)
            for before, item in zip((None, *value), value, strict=False)
        ]
    return value


def redact_argv(argv: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """A command line as it may be logged."""
    return list(redact_value(list(argv), known))


def known_secrets(*maps: Mapping[str, str]) -> tuple[str, ...]:
    """Every form in which a secret of `maps` can turn up in free text, longest first, to be cut from it.

    Taken are the values whose key looks like a secret, also inside JSON values, as they are, decoded from a client's
    JSON quotes, and as repr, JSON or a URL write them.
    """
    found = set()
    for value in itertools.chain.from_iterable(_secret_values(entries) for entries in maps):
        decoded = _unquoted(value)
        for form in (value, decoded):
            found |= {form, repr(form)[1:-1], json.dumps(form)[1:-1], quote(form, safe="")}
    return tuple(sorted((form for form in found if len(form) >= SHORTEST), key=lambda form: (-len(form), form)))


def _secret_values(value: Any, secret: bool = False) -> Iterator[str]:
    """The texts under a secret key, to any depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secret_values(item, secret or is_secret_key(str(key)))
    elif isinstance(value, (list, tuple)):
        for before, item in zip((None, *value), value, strict=False):
            yield from _secret_values(item, secret or _names_secret(before))
    elif isinstance(value, str):
        if secret:
            yield value
        parsed = _json(value)
        if parsed is not None:
            yield from _secret_values(parsed, secret)


def _names_secret(item: Any) -> bool:
    """Whether the argument after this one is a secret: `--api-key`."""
    return isinstance(item, str) and item.startswith("-") and "=" not in item and is_secret_key(item)


def _json(text: str) -> Any:
    """The object or list in `text`, or None: a plain value has no keys to look at."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _unquoted(text: str) -> str:
    if text[:1] != '"':
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text
