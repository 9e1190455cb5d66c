"""Hyperparameters arrive as strings, encoded differently by every client; one decoding gives them all one value.

| value | Estimator v2 | PyTorch v2 | ModelTrainer v3 | decoded |
|---|---|---|---|---|
| True | `True` | `true` | `true` | True |
| "adam" | `adam` | `"adam"` | `adam` | "adam" |
| [1, 2] | `[1, 2]` | `[1, 2]` | `[1, 2]` | [1, 2] |
| None | `None` | `null` | `null` | None |
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from typing import Any

from moorage.contract.secrets import redacted
from moorage.errors import ConfigError

_WORDS = {"true": True, "false": False, "none": None, "null": None}


class _No(Exception):
    """The value is not of the type."""


def decode(text: Any) -> Any:
    """The value behind a client's encoding: JSON first, then Python's literals, else the text itself."""
    if not isinstance(text, str):
        return text
    stripped = text.strip()
    if stripped.lower() in _WORDS:
        return _WORDS[stripped.lower()]
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    if stripped[:1] in ("[", "{", "(", "'", '"'):
        try:
            return ast.literal_eval(stripped)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            pass
    return text


def convert(text: Any, default: Any, name: str) -> Any:
    """`text` as the type of `default`; a default of None takes whatever was decoded.

    A list takes a comma-separated text too, and the type of its elements from those of the default. None is a value of
    a string: clients encode it so, and "no scheduler" means it. Raises ConfigError naming the key, the value and the
    type.
    """
    value = decode(text)
    if default is None:
        return value
    kind = type(default)
    if kind not in _READERS:
        raise ConfigError(
            f"{name}: a default of type {kind.__name__} cannot be read from a hyperparameter",
            fix="declare a bool, int, float, str, list, tuple, dict or None",
        )
    if isinstance(value, str) and kind is not str:
        value = decode(value)  # a client put quotes around what the user had as text: "0.1", "[1, 2]"
    try:
        return _READERS[kind](value, text, default)
    except (_No, ConfigError, ValueError, OverflowError):
        raise ConfigError(
            f"{name}: cannot read {shown(name, text)} as {kind.__name__}",
            fix=f"give a {kind.__name__} such as {default!r}",
        ) from None


def _bool(value: Any, text: Any, default: bool) -> bool:
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise _No


def _int(value: Any, text: Any, default: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1e3
    raise _No


def _float(value: Any, text: Any, default: float) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return float(value)  # a text such as .5, inf or nan
    raise _No


def _str(value: Any, text: Any, default: str) -> str | None:
    if isinstance(value, str):
        return value
    if text is None or (isinstance(text, str) and text.strip() in ("None", "null")):
        return None
    # A string stays as the user wrote it: "007" is not 7, and `true` or `none` may be a name.
    return str(text)


def _sequence(make: Callable[[Sequence[Any]], Any]) -> Callable[[Any, Any, Sequence[Any]], Any]:
    def read(value: Any, text: Any, default: Sequence[Any]) -> Any:
        if isinstance(value, str):
            if value.lstrip()[:1] in ("[", "("):
                raise _No  # a list that is broken, not a list of one
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif isinstance(value, (bool, int, float)):
            value = [value]
        if not isinstance(value, (list, tuple)):
            raise _No
        kinds = {type(item) for item in default}
        if len(kinds) == 1 and kinds <= _READERS.keys() - {list, tuple, dict}:
            value = [convert(item, default[0], "element") for item in value]
        return make(value)

    return read


def _dict(value: Any, text: Any, default: dict[Any, Any]) -> dict[Any, Any]:
    if isinstance(value, dict):
        return value
    raise _No


_READERS: dict[type, Callable[[Any, Any, Any], Any]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    list: _sequence(list),
    tuple: _sequence(tuple),
    dict: _dict,
}


def shown(name: str, value: Any) -> str:
    """`value` for an error message: hidden when it looks like a secret, and not endless."""
    text = redacted(name, value if isinstance(value, str) else repr(value))
    return repr(text if len(text) <= 100 else text[:100] + "...")


def unquoted(text: str) -> str:
    """The text in a JSON string, as some clients write hyperparameters; anything else as it is."""
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            pass
    return text
