"""moorage.toml: what a job is and how it is rehearsed, as a file. Flags say the same, and win.

Read by pydantic: the file is a boundary, its types are those of TOML, and typer brings pydantic along anyway. Every
error names the line, or the flag, where it was said.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage.contract.s3 import SCHEME
from moorage.contract.secrets import HIDDEN, is_secret_key
from moorage.errors import ConfigError

if TYPE_CHECKING:
    from moorage.rehearsal.jobschema import JobFile

NAME = "moorage.toml"

Place = tuple[str | int, ...]
"""Keys from the top of the file: ("rehearsal", "interrupt", 0)."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """A job as it was described. job: by file and flags together. origins: where each value was said."""

    job: JobFile
    origins: Mapping[Place, str] = field(default_factory=dict)
    path: Path | None = None

    def where(self, *place: str | int) -> str:
        """The line of the file, or the flag, that said it."""
        return _origin(place, self.origins, self.path)

    def to_toml(self) -> str:
        """A job file that says the same; secrets are hidden, since this is printed."""
        import tomli_w

        unsaid = {"tune"} - self.job.model_fields_set
        said = self.job.model_dump(exclude_none=True, exclude=unsaid)
        for table in ("hyperparameters", "environment"):
            said[table] = {
                name: HIDDEN if is_secret_key(name) else value for name, value in said.get(table, {}).items()
            }
        return tomli_w.dumps(
            {name: value for name, value in said.items() if value not in ({}, [])}, multiline_strings=False
        )


def find(folder: Path) -> Path | None:
    """The job file of `folder`, if there is one."""
    path = folder / NAME
    return path if path.is_file() else None


def describe(path: Path | None, flags: Mapping[tuple[str, ...], tuple[str, Any]] | None = None) -> Described:
    """The job that the file and the flags describe; paths in the file are made relative to the current folder.

    flags: place -> (name of the flag, value). Raises ConfigError.
    """
    text = _text(path) if path else ""
    said = _parsed(text, path)
    origins = {place: f"{path}, line {line}" for place, line in lines(text).items()}
    if path:
        _anchor(said, path.parent)
    _move(said, flags or {})
    for place, (flag, value) in (flags or {}).items():
        _put(said, place, value)
        origins = {known: where for known, where in origins.items() if known[: len(place)] != place} | {place: flag}
    return Described(job=_validated(said, origins, path), origins=origins, path=path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"cannot read the job file {path}", why=str(why), fix="`moorage init` writes one that works"
        ) from None


def _parsed(text: str, path: Path | None) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the job file {path} is not TOML", why=str(error), fix="strings are in quotes") from None


def _validated(said: dict[str, Any], origins: Mapping[Place, str], path: Path | None) -> JobFile:
    try:
        from pydantic import ValidationError

        from moorage.rehearsal.jobschema import JobFile, problems
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"the package {missing.name} is not installed", fix="pip install 'moorage[rehearsal]'"
        ) from None
    try:
        return JobFile.model_validate(said)
    except ValidationError as error:
        found = [(place, why, fix) for place, why, fix in problems(error, said)]
    place, why, fix = found[0]
    others = [f"{dotted(other)} ({_origin(other, origins, path)})" for other, _, _ in found[1:]]
    raise ConfigError(
        f"{_origin(place, origins, path)}: {dotted(place)} {why}",
        why=f"also wrong: {', '.join(others)}" if others else "",
        fix=fix,
    )


def _origin(place: Place, origins: Mapping[Place, str], path: Path | None) -> str:
    for length in range(len(place), 0, -1):
        if where := origins.get(place[:length]):
            return where
    return str(path or "the job")


def dotted(place: Place) -> str:
    """`rehearsal.interrupt[0]`."""
    text = ""
    for key in place:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def _move(said: dict[str, Any], flags: Mapping[tuple[str, ...], tuple[str, Any]]) -> None:
    """A program named by a flag, outside the file's folder of code, has a folder of its own."""
    program, source = flags.get(("program",), ("", None))[1], said.get("source")
    if program and isinstance(source, str) and ("source",) not in flags:
        path = Path(program).resolve()
        if path.is_file() and not path.is_relative_to(Path(source).resolve()):
            del said["source"]


def _put(said: dict[str, Any], place: Place, value: Any) -> None:
    for key in place[:-1]:
        inner = said.setdefault(str(key), {})
        if not isinstance(inner, dict):
            return  # the file is wrong there, and says so when it is checked
        said = inner
    said[str(place[-1])] = value


def _anchor(said: dict[str, Any], folder: Path) -> None:
    """Paths of the file are relative to it. What is not a text is left for the check."""

    def anchored(text: Any) -> Any:
        if not isinstance(text, str) or not text or text.startswith(SCHEME):
            return text
        return str(folder / Path(text).expanduser())

    tables = {name: said[name] for name in ("data", "rehearsal") if isinstance(said.get(name), dict)}
    for name, channel in tables.get("data", {}).items():
        if isinstance(channel, dict) and "path" in channel:
            channel["path"] = anchored(channel["path"])
        elif isinstance(channel, str):
            tables["data"][name] = anchored(channel)
    rehearsal = tables.get("rehearsal", {})
    if isinstance(said.get("program"), str) and "source" not in said and said["program"]:
        # A program without a folder of code lies in that of the file.
        said["source"] = "."
    if "source" in said:
        said["source"] = anchored(said["source"])
    for name in ("checkpoints", "folder"):
        if name in rehearsal:
            rehearsal[name] = anchored(rehearsal[name])


_HEAD = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def lines(text: str) -> dict[Place, int]:
    """The line of each key and table, from 1. tomllib does not tell; a text over several lines may mislead this."""
    found: dict[Place, int] = {}
    table: Place = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if head := _HEAD.match(line):
            table = _place(head[1])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, *_place(key[1])), number)
    return found


def _place(dotted_key: str) -> Place:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted_key))
