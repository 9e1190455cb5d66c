"""The program's hyperparameters: typed by their defaults, and as the arguments of its command line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from moorage.contract.secrets import redact_value
from moorage.contract.values import convert
from moorage.errors import ConfigError

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,255}")
"""What may become `--key` and SM_HP_KEY: nothing that an option parser or an environment could read otherwise."""


def arguments(given: Mapping[str, str]) -> tuple[str, ...]:
    """`--key value` for every hyperparameter, sorted by key, as sagemaker_training.mapping.to_cmd_args has it.

    A value is one item whatever is in it: quotes, newlines, `;` and `$()` mean nothing without a shell. Raises
    ConfigError for a key that cannot be an argument and for a value that no command line can carry.
    """
    items = []
    for key in sorted(given):
        if not KEY.fullmatch(key):
            raise ConfigError(
                f"hyperparameter {key!r} cannot become an argument of the program",
                why="its name is not of letters, digits, '_', '-' and '.', beginning with a letter or digit",
                fix="rename it where the job is created",
            )
        items += [_option(key), _carried(key, argument(given[key]))]
    return tuple(items)


def plain(text: str) -> Any:
    """The value of one hyperparameter as the official toolkit reads it: JSON, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def argument(text: str) -> str:
    """The argument that the official toolkit makes of one hyperparameter."""
    value = plain(text)
    if value is None:
        return ""
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in sorted(value.items()))
    return str(value)


def _option(key: str) -> str:
    return f"--{key}" if len(key) > 1 else f"-{key}"


def _carried(key: str, value: str) -> str:
    try:
        if b"\0" not in value.encode(errors="surrogateescape"):
            return value
        why = "it holds a NUL character"
    except UnicodeEncodeError:
        why = "it holds half a surrogate pair"
    raise ConfigError(
        f"hyperparameter {key!r} cannot become an argument of the program", why=why, fix="encode it, as base64 say"
    )


class Hyperparameters:
    """Hyperparameters by attribute or item, frozen; `repr` hides secrets.

    undeclared: what was given and not declared, still as text; `nearest` says what may have been meant.
    """

    __slots__ = ("_values", "undeclared")

    _values: Mapping[str, Any]
    undeclared: Mapping[str, str]

    def __init__(self, values: Mapping[str, Any], undeclared: Mapping[str, str] | None = None) -> None:
        if taken := sorted(name for name in values if name in dir(type(self))):
            raise ConfigError(f"a hyperparameter cannot be named {taken[0]!r}", fix="choose another name")
        object.__setattr__(self, "_values", MappingProxyType(dict(values)))
        object.__setattr__(self, "undeclared", MappingProxyType(dict(undeclared or {})))

    @classmethod
    def resolve(
        cls, given: Mapping[str, str], declared: Mapping[str, Any], argv: Sequence[str] = ()
    ) -> Hyperparameters:
        """The `declared` names with the values of the job's file, else their defaults.

        argv: the program's own arguments; `--key value`, `--key=value` and a bare `--flag` win over the file. Those
        that `train` made of the file itself do not: they lost their types on the way. A dash in a given name matches
        an underscore. Raises ConfigError naming key, value and type.
        """
        names = {_same(name): name for name in declared}
        values, undeclared = dict(declared), {}
        for kind, entries in (("hyperparameter ", given), ("argument --", _overrides(argv, given))):
            for key, text in entries.items():
                name = names.get(_same(key))
                if name is not None:
                    values[name] = convert(text, declared[name], f"{kind}{key}")
                elif not key.startswith(("sagemaker_", "moorage_", "_")):
                    undeclared[key] = text
        return cls(values, undeclared)

    def nearest(self, name: str) -> str:
        """The declared name that `name` may have meant, or ""."""
        near = difflib.get_close_matches(_same(name), self._values, n=1)
        return near[0] if near else ""

    def as_dict(self) -> dict[str, Any]:
        return dict(self._values)

    def shown(self) -> dict[str, Any]:
        """As they may be logged or written down: without secrets."""
        return dict(redact_value(self._values))

    def __getattr__(self, name: str) -> Any:
        # Copying and unpickling ask before there is anything to ask.
        if name.startswith("__") or name in self.__slots__:
            raise AttributeError(name)
        if name in self._values:
            return self._values[name]
        near = self.nearest(name)
        hint = f"did you mean {near!r}?" if near else f"declared are: {', '.join(self._values) or 'none'}"
        raise AttributeError(f"no hyperparameter {name!r} was declared; {hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"hyperparameters are frozen; keep a changed {name!r} in a variable of your own")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"hyperparameters are frozen; {name!r} stays")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hyperparameters) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]  # its values need not have one

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"Hyperparameters({', '.join(f'{name}={value!r}' for name, value in self.shown().items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self._values), dict(self.undeclared))


def _same(name: str) -> str:
    return name.replace("-", "_")


def _overrides(argv: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """The options of a command line, without those that only repeat the file."""
    repeated = {(_option(key), argument(text)) for key, text in given.items()}
    found: dict[str, str] = {}
    items = list(argv)
    while items:
        item, following = items.pop(0), items[0] if items else None
        if following is not None and (item, following) in repeated:
            items.pop(0)
            continue
        key, has_value, value = item.lstrip("-").partition("=")
        if not _is_option(item):
            continue
        if has_value:
            found[key] = value
        elif following is None or _is_option(following):
            found[key] = "true"
        else:
            found[key] = items.pop(0)
    return found


def _is_option(item: str) -> bool:
    """`--key` or `-k`, with or without `=value`; `-1` and `-.5` are values."""
    name = item.partition("=")[0]
    return bool(re.fullmatch(r"--[A-Za-z0-9][A-Za-z0-9_.\-]*|-[A-Za-z]", name))
