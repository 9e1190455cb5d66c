"""The tables and keys of moorage.toml, and what is said of one that is wrong. Imports pydantic: load it when needed.

[rehearsal] is how it is rehearsed, [submit] (submitschema.py) what a real job needs beside it, [tune] (tuneschema.py)
what a tuning job searches.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from moorage.contract.s3 import SCHEME
from moorage.rehearsal import spelling
from moorage.rehearsal.job import Client, Engine, InputMode
from moorage.rehearsal.submitschema import Submit
from moorage.rehearsal.tables import Duration, Table, Value, as_text, checked_by, read_by
from moorage.rehearsal.tuneschema import Tune


def _channel(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"s3" if value.startswith(SCHEME) else "path": value}


class ChannelTable(Table):
    """One input channel: a path as text, or this table."""

    path: str | None = Field(
        None, min_length=1, description="The folder, or the one file, that stands for the S3 prefix in a rehearsal."
    )
    s3: str | None = Field(None, min_length=1, description="The S3 prefix, or the one object: s3://BUCKET/PREFIX.")
    mode: InputMode = Field("File", description="How the data comes: copied, mounted, or through FIFOs.")
    sharded: bool = Field(False, description="Each host is given every n-th file (ShardedByS3Key).")
    content_type: str = Field("", description="ContentType of the channel.")
    groups: list[str] = Field([], max_length=5, description="The instance groups that are given it; else all.")

    @model_validator(mode="after")
    def _is_somewhere(self) -> ChannelTable:
        if self.path is None and self.s3 is None:
            raise ValueError("is nowhere\ngive `path`, a folder here, or `s3`")
        return self


class Rehearsal(Table):
    """What belongs to this machine, and what is to go wrong."""

    engine: Engine | None = Field(
        None, description="docker, or process: the same without containers. Without an image, process."
    )
    platform: str | None = Field(None, description="Of the image, where the engine emulates: linux/arm64.")
    client: Client = Field("sdk-v2", description="Whose encoding of hyperparameters, and way to give the program.")
    ranks_per_host: int | None = Field(None, ge=1, description="Ranks on each host; else one per device.")
    gpus: str | None = Field(None, description='"all", or how many.')
    shm_size: str | None = Field(None, description='/dev/shm of each host, as "2g"; else the engine\'s 64 MB.')
    memory: str | None = Field(None, description='Memory of each host, as "4g".')
    cpus: float | None = Field(None, gt=0, description="Cores of each host.")
    interrupt: list[Annotated[str, checked_by(spelling.interruption)]] = Field(
        [], description='"step=50", "time=30s", "every=20s", "random:5"; with ",hard", ",host=algo-2", ",grace=10s".'
    )
    hard: bool = Field(False, description="Interruptions come without SIGTERM.")
    interrupt_host: str | None = Field(None, description="The host that interruptions take first; else all at once.")
    fault: list[Annotated[str, checked_by(spelling.fault)]] = Field(
        [], description='"kill-rank,step=40", "freeze,time=10s,host=algo-2,for=5s".'
    )
    grace: Duration = Field(120.0, ge=0, description="From SIGTERM to SIGKILL.")
    restart_delay: Duration = Field(0.0, ge=0, description="Until Spot has other instances.")
    checkpoints: str | None = Field(
        None,
        min_length=1,
        description="The folder or s3://BUCKET/PREFIX of the checkpoints; else one of the run's own.",
    )
    checkpoint_config: bool = Field(True, description="Whether the job has a CheckpointConfig at all.")
    sync_delay: Duration = Field(0.0, ge=0, description="Until a file that appeared is uploaded.")
    sync_bandwidth: Annotated[float, read_by(spelling.rate)] = Field(
        0.0, ge=0, description='Bytes per second of each host, as "10MB/s"; 0 is without limit.'
    )
    sync_stops_at: Annotated[
        float | Literal["random"] | None, read_by(lambda given: spelling.share(str(given)), int, float)
    ] = Field(None, description='The share of an attempt\'s upload that is done when it is cut: 0.5, or "random".')
    seed: int = Field(0, ge=0, description="Of what is drawn at random.")
    folder: str | None = Field(None, min_length=1, description="Where all runs go; else runs/ in the current folder.")


class JobFile(Table):
    """A training job, as CreateTrainingJob has it; [rehearsal] is how it is rehearsed."""

    name: str | None = Field(None, description="What the job's name begins with; else that of the program.")
    program: str | None = Field(None, min_length=1, description="The program, in `source`; else the image has one.")
    source: str | None = Field(None, min_length=1, description="The folder of code; else that of the program.")
    arguments: list[str] = Field([], description="Of the program, beside the hyperparameters.")
    image: str | None = Field(None, min_length=1, description="The training image.")
    hosts: int = Field(1, ge=1, le=250, description="Instances.")
    instance_type: str = Field("local", description="What the job is told it runs on.")
    max_run: Duration = Field(86_400.0, gt=0, description="MaxRuntimeInSeconds.")
    max_wait: Duration | None = Field(None, gt=0, description="MaxWaitTimeInSeconds; with it, the job is on Spot.")
    retries: int = Field(3, ge=0, description="RetryStrategy: starts after a fault of the machine.")
    checkpoint_path: str = Field("/opt/ml/checkpoints", description="LocalPath of CheckpointConfig.")
    step_regex: str | None = Field(None, description="Finds the step in log lines of programs without our API.")
    hyperparameters: dict[str, Value] = Field({}, description="The program's; TOML's types.")
    settings: dict[str, Value] = Field({}, description="Moorage's own, as `moorage settings` lists them.")
    environment: dict[str, Annotated[str, BeforeValidator(as_text)]] = Field({}, description="Environment variables.")
    data: dict[str, Annotated[ChannelTable, BeforeValidator(_channel)]] = Field(
        {}, description="Input channels by name."
    )
    metrics: dict[str, str] = Field({}, description="MetricDefinitions: a regex with one group by name.")
    rehearsal: Rehearsal = Field(Rehearsal.model_validate({}), description="How it is rehearsed on this machine.")
    submit: Submit = Field(
        Submit.model_validate({}), description="What a real job needs beside what a rehearsal needs."
    )
    tune: Tune = Field(Tune.model_validate({}), description="What a tuning job searches, and how.")


TABLES: dict[str, type[Table]] = {"": JobFile, "rehearsal": Rehearsal, "submit": Submit, "tune": Tune}
"""Those with keys of their own, by the name of the table."""


_TYPES = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "string_type": "a text in quotes", "list_type": "a list", "dict_type": "a table",
    "model_type": "a table", "model_attributes_type": "a table",
}  # fmt: skip


def problems(error: ValidationError, said: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str, str]]:
    """(place, what is wrong with it, what to do), in the order of the schema. No value of a secret's is shown."""
    return [_problem(entry, said) for entry in error.errors(include_url=False)]


def _problem(entry: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[tuple[str | int, ...], str, str]:
    place = _place(entry["loc"], said)
    kind, context = entry["type"], entry.get("ctx", {})
    value = entry.get("input")
    if kind == "extra_forbidden":
        known = _keys(place[:-1])
        if (
            home := next((name for name, table in TABLES.items() if place[-1] in table.model_fields), None)
        ) is not None:
            where = f"in [{home}]" if home else "at the top of the file"
            return place, "is not known there", f"{place[-1]} stands {where}"
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.6)
        return place, "is not known", f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}"
    if kind == "missing":
        return place, "is missing", "give it"
    if kind in _TYPES:
        return place, f"is {_toml(value)}", f"give {_TYPES[kind]}"
    if kind == "literal_error":
        return place, f"cannot be {_toml(value)}", f"choose one of {context['expected'].replace(chr(39), '')}"
    if kind == "value_error":
        why, _, fix = str(context["error"]).partition("\n")
        return place, why if why.startswith("is ") else f"is wrong: {why}", fix
    return place, f"cannot be {_toml(value)}", entry["msg"].replace("Input should", "it has to", 1)


def _place(loc: tuple[str | int, ...], said: Any) -> tuple[str | int, ...]:
    """Without what pydantic appends for the branch of a union."""
    place: list[str | int] = []
    for key in loc:
        if not isinstance(said, Mapping | list) and place:
            break
        try:
            said = said[key]
        except (KeyError, IndexError, TypeError):
            said = {}
        place.append(key)
    return tuple(place)


def _toml(value: Any) -> str:
    """As it stands in the file, more or less."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(place: tuple[str | int, ...]) -> list[str]:
    if place[:1] == ("data",):
        return list(ChannelTable.model_fields)
    return list(TABLES.get(str(place[0]) if place else "", JobFile).model_fields)


def documented() -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of every key, for the documentation."""
    tables: dict[str, type[Table]] = {"": JobFile, "data.NAME.": ChannelTable}
    for prefix, table in (tables | {f"{name}.": table for name, table in TABLES.items() if name}).items():
        for name, info in table.model_fields.items():
            if not prefix and name in TABLES:
                continue
            default = "" if info.is_required() else info.default
            shown = (
                "" if default in (None, "", [], {}) else f"{default:g}" if type(default) is float else _toml(default)
            )
            yield prefix + name, shown.replace("'", '"'), str(info.description)
