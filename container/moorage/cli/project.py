"""`moorage init`: a project to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moorage.cli.help import command
from moorage.cli.terminal import Json, result

PANEL = "Project"


def add(app: typer.Typer) -> None:
    command(app, init, PANEL, ["moorage init my-job", "moorage init -i registry:5000/team/image:1"])


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="A folder that is empty or not there yet.")] = Path(),
    image: Annotated[
        str, typer.Option("--image", "-i", metavar="IMAGE", help="The training image that the job file names.")
    ] = "moorage:cpu",
    as_json: Json = False,
) -> None:
    """Lay out a working project: a program, its data, the job file, targets of make.

    It trains as it stands: `make train` without an engine, `make run` in containers.
    """
    from moorage.rehearsal.scaffold import lay_out

    made = [str(path) for path in lay_out(folder, image=image)]
    if as_json:
        result({"folder": str(folder), "files": made}, as_json=True)
        return
    there = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    result([*(f"made {folder / name}" for name in made), f"next: {there}make train"])
