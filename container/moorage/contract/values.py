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
from typing import Any

from moorage.errors import ConfigError

_WORDS = {"true": True, "false": False, "none": None, "null": None}


def decode(text: Any) -> Any:
    """The value behind a client's encoding: JSON first, then Python's literals, else the text itself."""
    if not isinstance(text, str):
        return text
    stripped = text.strip()
    if stripped.lower() in _WORDS:
        return _WORDS[stripped.lower()]
    try:
        return json.loads(stripped)
    except ValueError:
        pass
    if stripped[:1] in "[{('\"":
        try:
            return ast.literal_eval(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    return text


def convert(text: Any, default: Any, name: str) -> Any:
    """`text` as the type of `default`; a default of None takes whatever was decoded.

    Raises ConfigError naming the key, the value and the type.
    """
    value = decode(text)
    if value is None and default is None:
        return None
    kind = type(default)
    if default is None:
        return value
    if kind is bool:
        if isinstance(value, bool):
            return value
        if value in (0, 1):
            return bool(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):
            try:
                return float(value)  # 1e-3 without a dot, inf, nan
            except ValueError:
                pass
    elif kind is str:
        # A string stays as the user wrote it: "007" is not 7, and `true` may be a name.
        return value if isinstance(value, str) else str(text)
    elif kind in (list, tuple):
        if isinstance(value, (list, tuple)):
            return kind(value)
        if isinstance(value, str):
            return kind(part.strip() for part in value.split(",") if part.strip())
    elif kind is dict and isinstance(value, dict):
        return value
    raise ConfigError(
        f"{name}: cannot read a value as {kind.__name__}",
        why=f"got {shown(name, text)}",
        fix=f"give a {kind.__name__} such as {default!r}",
    )


def shown(name: str, value: Any) -> str:
    """`value` for an error message, hidden when it looks like a secret."""
    from moorage.contract.secrets import redacted

    return redacted(name, repr(value))
