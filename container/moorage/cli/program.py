"""`moorage metrics`, `moorage settings`: what a program logs, and what it can be told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from moorage.cli.help import command
from moorage.cli.terminal import Json, result
from moorage.errors import ProgramError

PANEL = "Program"


def add(app: typer.Typer) -> None:
    command(app, metrics, PANEL, ["moorage metrics train.py", "moorage metrics train.py --name gpu_hours --json"])
    command(app, settings, PANEL, ["moorage settings", "moorage settings --json"])


def metrics(
    programs: Annotated[
        list[Path] | None, typer.Argument(metavar="[PROGRAM]...", help="Python files of the program.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", metavar="NAME", help="One more metric, as it stands in the line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the MetricDefinitions that match a program's metric line.

    For CreateTrainingJob (--json). The names are read from the calls of run.step(...) and run.report(...) in the
    source; what is computed at run time is named by --name.
    """
    from moorage.contract.metrics import metric_definitions, metric_names

    names = set(name or ()).union(*(metric_names(path) for path in programs or ()))
    if not names:
        raise ProgramError(
            "no metrics found",
            why="metrics are the keywords of run.step(...) and run.report(...)",
            fix="name a program that calls them, or give --name",
        )
    definitions = metric_definitions(names)
    lines = [f"{definition['Name']}\t{definition['Regex']}" for definition in definitions]
    result(definitions if as_json else lines, as_json=as_json)


def settings(as_json: Json = False) -> None:
    """List Moorage's settings, of `train` and of `serve`, with what each means and its default."""
    from moorage.contract.settings import HYPERPARAMETER_PREFIX, Settings
    from moorage.serving.settings import ServeSettings

    trains = [
        {**shown, "hyperparameter": HYPERPARAMETER_PREFIX + shown["name"]} for shown in _described(Settings, "train")
    ]
    serves = _described(ServeSettings, "serve")
    if as_json:
        result([*trains, *serves], as_json=True)
        return
    lines = [
        "Each is set by the environment variable MOORAGE_<NAME>.",
        "",
        "Those of `train` by the hyperparameter moorage_<name> too, which wins:",
        *map(_line, trains),
        "",
        "Those of `serve`; an official variable says the same, and ours wins:",
        *map(_line, serves),
    ]
    result(lines)


def _described(kind: type[Any], of: str) -> list[dict[str, Any]]:
    from moorage.contract.setting import ENV_PREFIX

    return [
        {
            "name": field.name,
            "of": of,
            "environment": ENV_PREFIX + field.name.upper(),
            "official": field.metadata["official"],
            "default": field.default,
            "choices": list(field.metadata["choices"]),
            "meaning": field.metadata["doc"],
        }
        for field in dataclasses.fields(kind)
    ]


def _line(described: dict[str, Any]) -> str:
    choices = f" One of {', '.join(described['choices'])}." if described["choices"] else ""
    official = f" Also {described['official']}." if described["official"] else ""
    return f"  {described['name']:<26} {described['default']!r:<8} {described['meaning']}{choices}{official}"
