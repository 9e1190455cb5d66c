"""`moorage inspect`, `moorage goodput`: what a job left where its checkpoints are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moorage.cli.help import command
from moorage.cli.terminal import Json, Progress, Quiet, result
from moorage.errors import CheckpointError

PANEL = "Checkpoints"


def add(app: typer.Typer) -> None:
    command(
        app,
        inspect,
        PANEL,
        [
            "moorage inspect ml/one/checkpoints",
            "moorage inspect checkpoints/step-00000120 --json",
            "moorage inspect s3://bucket/jobs/digits --quick",
        ],
        codes={"0": "all are whole", "1": "not all, but one at least", "2": "none that a job can go on from"},
    )
    command(app, goodput, PANEL, ["moorage goodput ml/one/checkpoints", "moorage goodput ml/one/checkpoints --json"])


def inspect(
    place: Annotated[
        str, typer.Argument(metavar="DIR", help="A checkpoint folder, or s3://BUCKET/PREFIX; or one step-… in it.")
    ],
    as_json: Json = False,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only.")] = False,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="DIR is this host's own, without the files of the others.")
    ] = "",
    quiet: Quiet = False,
) -> None:
    """List the checkpoints of a folder or of an S3 prefix, and verify them.

    Every file is verified by its hash, for which it is read whole; nothing is changed. Without --host, those of which
    only one host's part is here do not count as whole.
    """
    from moorage.checkpoint import inspect as inspection
    from moorage.checkpoint import report

    progress = Progress("verifying", quiet=quiet)
    found = inspection.inspect_place(place, os.environ, quick=quick, tell=progress.tell)
    progress.end()
    result(report.as_json(found, host) if as_json else report.as_text(found, host), as_json=as_json)
    raise typer.Exit(found.exit_code(host))


def goodput(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The job's checkpoint folder.")],
    as_json: Json = False,
) -> None:
    """Tell where the time of a job went.

    How much of it was useful, and where the rest went, over all attempts and hosts, from the ledgers beside the
    checkpoints.
    """
    from moorage.contract import ledger
    from moorage.contract.goodput import measure

    home = folder
    if home.name == ledger.FOLDER and not (home / ledger.FOLDER).is_dir():
        home = home.absolute().parent
    found = measure(ledger.read_ledger(home))
    if found is None:
        raise CheckpointError(
            f"{folder} has no ledger of a training",
            why="the ledgers lie in the folder ledger beside the checkpoints, and a program without moorage.start() "
            "says nothing of its steps",
            fix="name the job's checkpoint folder, or a copy of it",
        )
    result(found.to_json() if as_json else found.table(), as_json=as_json)
