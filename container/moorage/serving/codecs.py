"""Bodies and values: JSON, CSV, NPY and JSON lines, strictly.

What comes in wrong is the client's doing, a RequestError; what cannot go out is the model's, an OutputError.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from moorage.serving import media, npy
from moorage.serving.exchange import RequestError
from moorage.serving.media import CSV, JSON, JSON_LINES, NPY, Media
from moorage.serving.plain import is_tensor, plain, to_array

OFFERED = f"{JSON}, {CSV}, {NPY} and {JSON_LINES}"


class OutputError(Exception):
    """A prediction that has no form in what the client accepts; the message is for the client."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.message, self.status = message, status


def decode(kind: Media, body: memoryview) -> Any:
    """The value of a body: of JSON what it says, of JSON lines a list, of the others an array. Raises RequestError."""
    read = _DECODERS.get(kind.format)
    if read is None:
        raise RequestError(
            f"the body is said to be {kind.name or 'nothing'}, which is not read here: send {OFFERED}, "
            f"with a header such as 'Content-Type: {JSON}'",
            status=415,
        )
    if not body:
        raise RequestError("the body is empty", status=400)
    if kind.format == NPY:
        return read(body)
    return read(text(kind, body))


def text(kind: Media, body: memoryview) -> str:
    """Raises RequestError for what is not UTF-8."""
    if kind.charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise RequestError(f"charset {kind.charset} is not read here: send UTF-8", status=415)
    try:
        return str(body, "utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}", 400) from None


def encode(kind: str, value: Any) -> bytes:
    """A prediction in one of media.KNOWN. Raises OutputError."""
    return _ENCODERS[media.KNOWN[kind]](value)


def to_json(value: Any) -> bytes:
    try:
        return _JSON_OUT.encode(value).encode()
    except ValueError as error:
        if "JSON compliant" not in str(error):
            raise OutputError(f"the prediction cannot be written as JSON: {error}") from None
        message = f"the prediction holds NaN or Infinity, which JSON cannot: ask for it with 'Accept: {NPY}'"
        raise OutputError(message) from None
    except (TypeError, RecursionError) as error:
        raise OutputError(f"the prediction cannot be written as JSON: {error}") from None


def _from_json(text: str) -> Any:
    try:
        return _JSON_IN.decode(text)
    except _NotANumber as error:
        raise RequestError(f"the body is not JSON: {error} is no number of JSON's", status=400) from None
    except RecursionError:
        raise RequestError("the body is JSON nested too deeply", status=400) from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}", status=400) from None


def _from_json_lines(text: str) -> list[Any]:
    values = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append(_from_json(line))
        except RequestError as error:
            raise RequestError(error.message.replace("the body", f"line {number}"), error.status) from None
    return values


def _from_csv(text: str) -> Any:
    text = text.removeprefix("\ufeff")  # as Excel writes it
    if not text.strip():
        raise RequestError("the body is empty", status=400)
    try:
        return np.loadtxt(io.StringIO(text), delimiter=",", comments=None, quotechar='"', ndmin=2)
    except ValueError as error:
        raise RequestError(f"the body is not CSV of numbers, without a header: {error}", status=400) from None


def _from_npy(body: memoryview) -> Any:
    try:
        return npy.decode(body)
    except npy.NotNpy as error:
        raise RequestError(f"the body is not NPY: {error}", status=400) from None


def _to_json_lines(value: Any) -> bytes:
    rows = plain(value)
    return b"".join(to_json(row) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


def _to_csv(value: Any) -> bytes:
    """A row for each sample, its numbers in a row however they are nested: as a body is read."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    try:
        if is_tensor(value) and value.ndim:
            array = to_array(value)
            writer.writerows(array.reshape(len(array), -1).tolist())
        else:
            rows = plain(value)
            writer.writerows([*_flat(row)] for row in (rows if isinstance(rows, list) else [rows]))
    except (TypeError, RecursionError) as error:
        raise OutputError(f"the prediction has no form in CSV: {error}; ask for {JSON}", status=406) from None
    return file.getvalue().encode()


def _flat(value: Any) -> Iterator[Any]:
    value = plain(value)
    if isinstance(value, dict):
        raise TypeError("it has names")
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _to_npy(value: Any) -> bytes:
    try:
        return npy.encode(to_array(value))
    except (TypeError, ValueError) as error:
        raise OutputError(f"the prediction is no single array: {error}; ask for {JSON}", status=406) from None


class _NotANumber(ValueError):
    """NaN, Infinity or -Infinity, which Python reads and JSON does not have (RFC 8259, section 6)."""


def _refuse(name: str) -> NoReturn:
    raise _NotANumber(name)


_JSON_IN = json.JSONDecoder(parse_constant=_refuse)
_JSON_OUT = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=plain)
_DECODERS: Mapping[str, Callable[[Any], Any]] = {
    JSON: _from_json, CSV: _from_csv, NPY: _from_npy, JSON_LINES: _from_json_lines,
}  # fmt: skip
_ENCODERS: Mapping[str, Callable[[Any], bytes]] = {
    JSON: to_json, CSV: _to_csv, NPY: _to_npy, JSON_LINES: _to_json_lines,
}  # fmt: skip
