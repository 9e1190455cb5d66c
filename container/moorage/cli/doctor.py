"""`moorage doctor`: whether a rehearsal can work here, and what to do where it cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moorage.cli.help import command
from moorage.cli.terminal import Json, result

if TYPE_CHECKING:
    from moorage.rehearsal.doctor import Asked
    from moorage.rehearsal.findings import Finding

PANEL = "Project"
_STYLES = {"ok": "green", "skipped": "dim", "warn": "bold yellow", "bad": "bold red"}


def add(app: typer.Typer) -> None:
    command(
        app,
        doctor,
        PANEL,
        ["moorage doctor", "moorage doctor --image my-training:1 --gpus all", "moorage doctor --aws --json"],
        codes={"0": "all is well, warnings aside", "1": "something does not work, and the fix is said"},
    )


def doctor(
    *,
    image: Annotated[
        str | None, typer.Option("--image", "-i", metavar="IMAGE", help="To be looked at; else the job file's.")
    ] = None,
    platform: Annotated[str | None, typer.Option("--platform", metavar="OS/ARCH", help="Of the image.")] = None,
    gpus: Annotated[str | None, typer.Option("--gpus", metavar="all|N", help="That hosts are to have.")] = None,
    shm_size: Annotated[str | None, typer.Option("--shm-size", metavar="SIZE", help="That hosts are to have.")] = None,
    folder: Annotated[Path | None, typer.Option("--folder", metavar="DIR", help="Where runs go; else runs/.")] = None,
    aws: Annotated[bool, typer.Option("--aws", help="AWS credentials too.")] = False,
    as_json: Json = False,
) -> None:
    """See whether rehearsals can work here: engine, image, disks, shared memory, GPUs, leftovers.

    What the job file in the current folder says is taken from there. Nothing of the image is run.
    """
    from moorage.rehearsal.doctor import as_json as as_data
    from moorage.rehearsal.doctor import examine
    from moorage.rehearsal.findings import State

    given = {"image": image, "platform": platform, "gpus": gpus, "shm_size": shm_size, "folder": folder}
    asked = _asked(given, aws)
    found = []
    for finding in examine(asked, os.environ):
        found.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        result(as_data(found), as_json=True)
    raise typer.Exit(int(any(finding.state is State.BAD for finding in found)))


def _asked(given: dict[str, str | Path | None], aws: bool) -> Asked:
    """With what the job file says."""
    from moorage.rehearsal.doctor import Asked
    from moorage.rehearsal.jobfile import describe, find

    path = find(Path())
    job = describe(path).job if path else None
    said = {
        "image": job and job.image, "platform": job and job.rehearsal.platform, "gpus": job and job.rehearsal.gpus,
        "shm_size": job and job.rehearsal.shm_size, "folder": job and job.rehearsal.folder,
    }  # fmt: skip
    both = {name: value if value is not None else said[name] for name, value in given.items()}
    checkpoints = (job and job.rehearsal.checkpoints) or ""
    return Asked(
        **{name: value for name, value in both.items() if value is not None and name != "folder"},  # type: ignore[arg-type]  # texts
        folder=Path(both["folder"] or "runs"),
        aws=aws or checkpoints.startswith("s3://"),
    )


def _show(finding: Finding) -> None:
    """A line, and the fix below it, on stdout: they are what was asked for."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(Text.assemble((f"{finding.state:<8}", _STYLES[finding.state]), f"{finding.name:<14} {finding.text}"))
    if finding.fix:
        console.print(f"{'':<8}{'':<14} fix: {finding.fix}")
