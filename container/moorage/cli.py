"""The `moorage` command of the host side."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from moorage import __version__
from moorage.contract.settings import ENV_PREFIX, HYPERPARAMETER_PREFIX, Settings
from moorage.errors import MoorageError, ProgramError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code is 0, 2 for wrong usage, or that of the error."""
    parser = argparse.ArgumentParser(prog="moorage", description="The host side of Moorage.")
    parser.add_argument("--version", action="version", version=f"moorage {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)

    metrics = commands.add_parser(
        "metrics",
        help="print the MetricDefinitions that match a program's metric line",
        description="Print SageMaker MetricDefinitions for the metrics a program logs through run.step(...) and "
        "run.report(...). The names are read from the source; what is computed at run time is named by --name.",
    )
    metrics.add_argument("program", nargs="*", type=Path, help="Python files of the program")
    metrics.add_argument("--name", action="append", default=[], help="one more metric, as it stands in the line")
    metrics.add_argument("--json", action="store_true", help="as JSON for CreateTrainingJob")
    metrics.set_defaults(run=_metrics)

    settings = commands.add_parser("settings", help="list Moorage's settings, with what each means and its default")
    settings.add_argument("--json", action="store_true", help="as JSON")
    settings.set_defaults(run=_settings)

    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except MoorageError as error:
        print(f"moorage: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _metrics(arguments: argparse.Namespace) -> None:
    from moorage.contract.metrics import metric_definitions

    names = set(arguments.name).union(*(metric_names(path) for path in arguments.program))
    if not names:
        raise ProgramError(
            "no metrics found",
            why="metrics are the keywords of run.step(...) and run.report(...)",
            fix="name a program that calls them, or give --name",
        )
    definitions = metric_definitions(names)
    if arguments.json:
        print(json.dumps(definitions, indent=2))
        return
    for definition in definitions:
        print(f"{definition['Name']}\t{definition['Regex']}")


def metric_names(program: Path) -> set[str]:
    """The metrics `program` logs: keywords of `.step(...)`, as train_<name>, and of `.report(...)`.

    Raises ProgramError when the file cannot be read or parsed.
    """
    try:
        tree = ast.parse(program.read_text(encoding="utf-8"), str(program))
    except OSError as error:
        raise ProgramError(f"cannot read {program}", why=str(error.strerror), fix="name the program's file") from None
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ProgramError(f"{program} is not Python", why=str(error)) from None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            prefix = {"step": "train_", "report": ""}.get(node.func.attr)
            if prefix is not None:
                names.update(prefix + keyword.arg for keyword in node.keywords if keyword.arg)
    return names


def _settings(arguments: argparse.Namespace) -> None:
    fields = [
        {
            "name": field.name,
            "environment": ENV_PREFIX + field.name.upper(),
            "hyperparameter": HYPERPARAMETER_PREFIX + field.name,
            "default": field.default,
            "choices": list(field.metadata["choices"]),
            "meaning": field.metadata["doc"],
        }
        for field in dataclasses.fields(Settings)
    ]
    if arguments.json:
        print(json.dumps(fields, indent=2))
        return
    print(
        "Each is set by the environment variable MOORAGE_<NAME>, or by the hyperparameter moorage_<name>, which wins.\n"
    )
    for field in fields:
        choices = f" One of {', '.join(field['choices'])}." if field["choices"] else ""
        print(f"  {field['name']:<26} {field['default']!r:<8} {field['meaning']}{choices}")


if __name__ == "__main__":
    sys.exit(main())
