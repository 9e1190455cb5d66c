"""What a setting of Moorage's own is, a field of a dataclass, and how it is read from MOORAGE_* in the environment.

`train` has its own (contract/settings.py) and `serve` has (serving/settings.py); one environment may hold both.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage.contract.values import convert
from moorage.errors import ConfigError

ENV_PREFIX = "MOORAGE_"

INTERNAL = frozenset({"MOORAGE_RUN_FOLDER", "MOORAGE_LINEAGE", "MOORAGE_BENCH", "MOORAGE_CHAOS", "MOORAGE_TEST_IMAGE"})
"""Set by us for our own processes and jobs: not settings, so not checked as such."""


def setting(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    check: Callable[[Any], bool] | None = None,
    official: str = "",
) -> Any:
    """A field that documents itself; `moorage settings` prints the docs.

    official: the variable by which the platform or its SDK says the same.
    """
    return field(default=default, metadata={"doc": doc, "choices": choices, "check": check, "official": official})


@dataclass(frozen=True, kw_only=True)
class Given:
    """source: where it was said, for the error."""

    name: str
    value: Any
    source: str


def in_environment(env: Mapping[str, str], *, beside: Iterable[str] = ()) -> Iterator[Given]:
    """What MOORAGE_* say; an empty one says nothing. beside: settings that are another command's, and none of ours."""
    passed_over = frozenset(beside)
    for key, text in env.items():
        if key.startswith(ENV_PREFIX) and key not in INTERNAL and text.strip():
            name = key.removeprefix(ENV_PREFIX).lower()
            if name not in passed_over:
                yield Given(name=name, value=text, source=f"environment variable {key}")


def checked(kind: type, given: Iterable[Given], *, beside: Iterable[str] = ()) -> dict[str, Any]:
    """The values by name, typed by the defaults of the dataclass `kind`; what is said later wins.

    beside: names that are no mistake elsewhere, so that the nearest of them is offered too. Raises ConfigError for a
    name that there is not, a value of the wrong type, or one outside its choices or bounds.
    """
    fields = {field_.name: field_ for field_ in dataclasses.fields(kind)}
    return {one.name: _checked(one, fields, beside) for one in given}


def _checked(given: Given, fields: Mapping[str, dataclasses.Field[Any]], beside: Iterable[str]) -> Any:
    name, source = given.name, given.source
    if name not in fields:
        near = difflib.get_close_matches(name, {*fields, *beside}, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(sorted(fields))}"
        raise ConfigError(f"{source}: moorage has no setting {name!r}", fix=hint)
    value = convert(given.value, fields[name].default, source)
    choices, check = fields[name].metadata["choices"], fields[name].metadata["check"]
    if value is None:
        raise ConfigError(f"{source}: None is not a {name}", fix="leave it out for the default")
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(choices)}"
        raise ConfigError(f"{source}: {value!r} is not a {name}", fix=hint)
    if check and not check(value):
        raise ConfigError(f"{source}: {value!r} is not a {name}", why=fields[name].metadata["doc"])
    return value


def positive(value: float) -> bool:
    return 0 < value < math.inf


def not_negative(value: float) -> bool:
    return 0 <= value < math.inf
