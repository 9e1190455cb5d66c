"""A request of any operation, checked against AWS's own model of it, without AWS.

botocore carries the model, but checks types and smallest values only. Here also: unknown keys (with the nearest one),
lengths, patterns, enumerations, ranges, and unions.
"""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from moorage.cloud import patterns
from moorage.cloud.finding import Finding
from moorage.contract.secrets import is_secret_key, redact
from moorage.errors import ConfigError

_WHOLE: dict[str, tuple[int, int]] = {"integer": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "structure": ((Mapping,), "an object"),
    "map": ((Mapping,), "an object"),
    "list": ((list, tuple), "a list"),
    "string": ((str,), "a text"),
    "boolean": ((bool,), "true or false"),
    "integer": ((int,), "a whole number"),
    "long": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "double": ((int, float), "a number"),
    "timestamp": ((datetime.datetime, str, int, float), "a time"),
    "blob": ((bytes, bytearray, str), "bytes"),
}


def check(operation: str, request: Mapping[str, Any], service: str = "sagemaker") -> tuple[Finding, ...]:
    """What AWS would refuse of the request; nothing, or errors with the path of each in their `place`.

    Codes: model-missing, model-unknown, model-type, model-length, model-pattern, model-choice, model-range,
    model-union. Raises ConfigError for an operation that the installed botocore does not know.
    """
    return tuple(_shape(_input(operation, service), request, ""))


def version() -> str:
    """Of the model: enumerations grow with it."""
    import botocore

    return f"botocore {botocore.__version__}"


@cache
def _input(operation: str, service: str) -> Any:
    import botocore.session
    from botocore.exceptions import UnknownServiceError
    from botocore.model import OperationNotFoundError

    try:
        return botocore.session.get_session().get_service_model(service).operation_model(operation).input_shape
    except (UnknownServiceError, OperationNotFoundError):
        raise ConfigError(
            f"{version()} does not know the operation {operation} of {service}", fix="pip install -U boto3"
        ) from None


def _shape(shape: Any, value: Any, place: str) -> Iterator[Finding]:
    if not _is_of(shape, value):
        yield _finding("type", place, f"is {_shown(value, place)}", f"give {_KINDS[shape.type_name][1]}")
        return
    if shape.type_name == "structure":
        yield from _structure(shape, value, place)
    elif shape.type_name == "map":
        yield from _length(shape, value, place, "entries")
        for key, one in value.items():
            yield from _shape(shape.key, key, f"the key {place}[{key!r}]")
            yield from _shape(shape.value, one, f"{place}[{key!r}]")
    elif shape.type_name == "list":
        yield from _length(shape, value, place, "entries")
        for index, one in enumerate(value):
            yield from _shape(shape.member, one, f"{place}[{index}]")
    elif shape.type_name == "string":
        yield from _string(shape, value, place)
    elif shape.type_name in ("integer", "long", "float", "double"):
        yield from _number(shape, value, place)


def _is_of(shape: Any, value: Any) -> bool:
    kinds = _KINDS[shape.type_name][0]
    # A bool is an int to Python, and to nobody else.
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _structure(shape: Any, value: Mapping[str, Any], place: str) -> Iterator[Finding]:
    for name in shape.required_members:
        if value.get(name) is None:
            yield _finding("missing", _joined(place, name), "is missing", "give it")
    if getattr(shape, "is_tagged_union", False) and len(value) != 1:
        yield _finding("union", place, f"has {len(value)} members", f"give one of {', '.join(shape.members)}")
    for key, one in value.items():
        if key not in shape.members:
            near = _nearest(str(key), list(shape.members))
            fix = f"did you mean {near}?" if near else f"known are: {', '.join(shape.members)}"
            yield _finding("unknown", _joined(place, str(key)), "is not known", fix)
        elif one is not None or key not in shape.required_members:
            yield from _shape(shape.members[key], one, _joined(place, key))


def _string(shape: Any, value: str, place: str) -> Iterator[Finding]:
    problems = list(_length(shape, value, place, "characters"))
    yield from problems
    if shape.enum and value not in shape.enum:
        yield _choice(shape, value, place)
    pattern = shape.metadata.get("pattern")
    if pattern and not problems and patterns.matches(pattern, value) is False:
        what = f"{_shown(value, place)} is not of the form asked for"
        yield _finding("pattern", place, what, f"it has to match {pattern}")


def _choice(shape: Any, value: str, place: str) -> Finding:
    near = _nearest(value, shape.enum)
    several = ", ".join(shape.enum) if len(shape.enum) <= 12 else f"{', '.join(shape.enum[:8])}, ..."
    fix = f"did you mean {near}?" if near else f"choose one of {several}"
    newer = f"{version()} knows {len(shape.enum)}; a newer one may know more" if len(shape.enum) > 12 else ""
    return _finding("choice", place, f"cannot be {_shown(value, place)}", fix, why=newer)


def _number(shape: Any, value: float, place: str) -> Iterator[Finding]:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if shape.type_name in _WHOLE:
        lowest, highest = _WHOLE[shape.type_name]
        least, most = (lowest if least is None else least), (highest if most is None else most)
    if least is not None and value < least:
        yield _finding("range", place, f"is {value}", f"it has to be {least} at least")
    if most is not None and value > most:
        yield _finding("range", place, f"is {value}", f"it has to be {most} at most")


def _length(shape: Any, value: Sequence[Any] | Mapping[str, Any], place: str, of: str) -> Iterator[Finding]:
    least, most = shape.metadata.get("min", 0), shape.metadata.get("max")
    if len(value) < least:
        yield _finding("length", place, f"has {len(value)} {of}", f"it has to have {least} at least")
    if most is not None and len(value) > most:
        yield _finding("length", place, f"has {len(value)} {of}", f"it may have {most} at most")


def _finding(kind: str, place: str, what: str, fix: str, why: str = "") -> Finding:
    place = place or "the request"
    return Finding(code=f"model-{kind}", place=place, what=f"{place} {what}" if place else what, fix=fix, why=why)


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _nearest(text: str, known: Sequence[str]) -> str:
    by_small = {name.lower(): name for name in known}
    near = difflib.get_close_matches(text.lower(), by_small, n=1, cutoff=0.6)
    return by_small[near[0]] if near else ""


def _shown(value: Any, place: str) -> str:
    """As a message may show it: short, and without a secret."""
    if is_secret_key(place.rpartition("[")[2].strip("']\"")):
        return "a value that is not shown"
    text = redact(value) if isinstance(value, str) else value
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
