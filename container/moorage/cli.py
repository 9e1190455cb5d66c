"""The `moorage` command of the host side."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from moorage import __version__
from moorage.contract.settings import ENV_PREFIX, HYPERPARAMETER_PREFIX, Settings
from moorage.errors import CheckpointError, ConfigError, MoorageError, ProgramError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code is its own, 78 for wrong usage, or that of the error."""
    parser = _Parser(prog="moorage", description="The host side of Moorage.")
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

    inspect = commands.add_parser(
        "inspect",
        help="list the checkpoints of a folder, and verify them",
        description="List the checkpoints in DIR and verify every file by its hash; nothing is changed. Exit code: "
        "0 all are whole, 1 not all but one at least, 2 none that a job can go on from. Without --host, those of "
        "which only one host's part is here do not count as whole.",
    )
    inspect.add_argument("folder", type=Path, metavar="DIR", help="a checkpoint folder, or one step-… in it")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.add_argument("--quick", action="store_true", help="compare sizes only")
    inspect.add_argument("--host", default="", help="DIR is this host's own, without the files of the others")
    inspect.set_defaults(run=_inspect)

    goodput = commands.add_parser(
        "goodput",
        help="tell where the time of a job went",
        description="Print how much of a job's time was useful, and where the rest went, over all its attempts and "
        "hosts, from the ledgers beside its checkpoints.",
    )
    goodput.add_argument("folder", type=Path, help="the job's checkpoint folder")
    goodput.add_argument("--json", action="store_true", help="as JSON")
    goodput.set_defaults(run=_goodput)

    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except MoorageError as error:
        print(f"moorage: {error}", file=sys.stderr)
        return error.exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse's own 2 is an answer of some commands.
        self.print_usage(sys.stderr)
        self.exit(ConfigError.exit_code, f"moorage: {message}\n")


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


def _inspect(arguments: argparse.Namespace) -> int:
    from moorage.checkpoint import inspect, report

    progress = _Progress()
    found = inspect.inspect_folder(arguments.folder, quick=arguments.quick, tell=progress.tell)
    progress.end()
    if arguments.json:
        print(json.dumps(report.as_json(found, arguments.host), indent=2, allow_nan=False))
    else:
        print("\n".join(report.as_text(found, arguments.host)))
    return found.exit_code(arguments.host)


class _Progress:
    """How far a verification is, on stderr: one line that changes, or on no terminal one every ten seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0 if self._terminal else 10)
        self._width = 0

    def tell(self, name: str, done: int, total: int) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (0.1 if self._terminal else 10)
        text = f"verifying {name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
        self._width = max(self._width, len(text))
        sys.stderr.write(f"\r{text.ljust(self._width)}" if self._terminal else f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._width and self._terminal:
            sys.stderr.write(f"\r{' ' * self._width}\r")


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


def _goodput(arguments: argparse.Namespace) -> None:
    from moorage.contract import ledger
    from moorage.contract.goodput import measure

    folder: Path = arguments.folder
    if folder.name == ledger.FOLDER and not (folder / ledger.FOLDER).is_dir():
        folder = folder.absolute().parent
    found = measure(ledger.read_ledger(folder))
    if found is None:
        raise CheckpointError(
            f"{arguments.folder} has no ledger of a training",
            why="the ledgers lie in the folder ledger beside the checkpoints, and a program without moorage.start() "
            "says nothing of its steps",
            fix="name the job's checkpoint folder, or a copy of it",
        )
    print(json.dumps(found.to_json(), indent=1) if arguments.json else "\n".join(found.table()))


if __name__ == "__main__":
    sys.exit(main())
