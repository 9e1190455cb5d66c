"""All commands in one app, and what an error becomes on its way out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from moorage import __version__
from moorage.cli import (
    checkpoints,
    compare,
    deploy,
    doctor,
    plan,
    program,
    project,
    push,
    report,
    run,
    serve,
    submit,
    tune,
    verify,
    watch,
)
from moorage.cli.help import exit_codes
from moorage.cli.terminal import show_error
from moorage.errors import MoorageError

EXIT_CODES = {
    "0": "done, and the answer is yes",
    "1": "done, and the answer is no: the job failed, a check found something",
    "2": "the command line is wrong",
    "65-78": "an error, which says why and what to do: docs/cli.md",
    "130": "stopped by Ctrl-C",
}


def build() -> typer.Typer:
    """The app with every command in it."""
    app = typer.Typer(
        name="moorage",
        help="Rehearse, prove and look at SageMaker training jobs, and serve what they made, from your own machine.",
        epilog=exit_codes(EXIT_CODES),
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_moorage)
    here = (run, verify, report, compare, tune, serve, checkpoints, program, project, doctor)
    for family in (*here, plan, push, submit, watch, deploy):
        family.add(app)
    return app


def _version(asked: bool) -> None:
    if asked:
        print(f"moorage {__version__}")
        raise typer.Exit


def _moorage(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is its own, 2 for wrong usage, or that of the error."""
    try:
        build()(list(sys.argv[1:] if argv is None else argv), prog_name="moorage")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except MoorageError as error:
        show_error(error, os.environ)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain once more as it flushes.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        return 128 + 13
    return 0
