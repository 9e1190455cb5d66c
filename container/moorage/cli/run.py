"""`moorage run`, `moorage clean`: a training job on this machine, and what one left that died."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from moorage.cli.flags import Flags, described
from moorage.cli.help import command
from moorage.cli.show import Logs, Show, announced
from moorage.cli.terminal import Json, Quiet, logged, narrate, narrator, result
from moorage.errors import ConfigError

if TYPE_CHECKING:
    from moorage.rehearsal.job import Job
    from moorage.rehearsal.stopper import Stopper

PANEL = "Rehearsal"
CODES = {
    "0": "the job completed",
    "1": "it failed",
    "3": "it was stopped before it completed: max-run, max-wait",
    "130": "it was stopped by Ctrl-C",
}


def add(app: typer.Typer) -> None:
    command(
        app,
        run,
        PANEL,
        [
            "moorage run",
            "moorage run train.py --image moorage:cpu -d train=data/train -p lr=1e-3",
            "moorage run train.py -i moorage:cpu -n 2 -r 2 --interrupt random:5",
            "moorage run train.py -i moorage:cpu -n 2 --interrupt step=50,hard --sync-stops-at random",
            "moorage run train.py --fault kill-rank,step=40 --logs main --only '#metric'",
            "moorage run train.py -n 2 --print-config > moorage.toml",
        ],
        codes=CODES,
    )
    command(app, clean, PANEL, ["moorage clean", "moorage clean --json"])


@described(os.environ)
def run(
    job: Flags,
    *,
    logs: Annotated[Logs, typer.Option("--logs", help="Whose log is shown; main is the host of rank 0.")] = Logs.ALL,
    only: Annotated[
        str, typer.Option("--only", metavar="REGEX", help="Of the logs, lines in which this is found.")
    ] = "",
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print what the job file and the flags say together, and end.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rehearse a training job on this machine, its whole life.

    One container for each host, with the files that SageMaker gives it; checkpoints are uploaded and restored as the
    platform does, and what is asked to go wrong goes wrong. The job file moorage.toml says what flags say; flags win.

    Ctrl-C stops the job as StopTrainingJob does: SIGTERM, and its grace. A second one kills it. Logs and what is told
    go to stderr, the summary to stdout.
    """
    from moorage.rehearsal.assemble import assemble
    from moorage.rehearsal.life import rehearse
    from moorage.rehearsal.stopper import Stopper
    from moorage.rehearsal.summary import summary

    description = job.describe()
    if print_config:
        result(description.to_toml().rstrip("\n"))
        return
    rehearsed = assemble(description, datetime.now())
    stopper = Stopper()
    show = Show(rehearsed, logs=logs, only=_regex(only), quiet=quiet)
    with show, interruptible(stopper, show):
        for line in announced(rehearsed, chosen(job, rehearsed)):
            show.tell(line)
        outcome = rehearse(rehearsed, show, env=os.environ, stop=stopper)
    result(outcome.to_json() if as_json else summary(outcome), as_json=as_json)
    if stopper.asked and not outcome.completed:
        raise typer.Exit(130)
    raise typer.Exit({"Completed": 0, "Failed": 1}.get(outcome.status, 3))


def chosen(flags: Flags, job: Job) -> dict[str, str]:
    """What nobody said, and why it is so."""
    from moorage.rehearsal.jobfile import find

    chosen = {}
    if flags.config is None and (path := find(Path())):
        chosen["job file"] = f"{path}, since it is here"
    if job.engine == "process" and job.image is None:
        chosen["engine"] = "process, since no image is named; --image has it run in containers"
    return chosen


def _regex(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise ConfigError(f"--only {text!r} is not a regex", why=str(error), fix="put a \\ before . * + ( [") from None


class Asked(Protocol):
    """Is told that the terminal asked to stop, and whether it did so before."""

    def asked_to_stop(self, again: bool, /) -> None: ...


@contextmanager
def interruptible(stopper: Stopper, show: Asked) -> Iterator[None]:
    """The first Ctrl-C, SIGTERM or SIGHUP asks the job to stop, the second kills it; the shell gets its terminal back
    only when nothing is left."""

    def asked(number: int, frame: FrameType | None) -> None:
        if not stopper.hard:
            again = stopper.asked
            stopper.ask()
            show.asked_to_stop(again)

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def clean(as_json: Json = False, quiet: Quiet = False) -> None:
    """Remove what runs left that died: containers, networks, processes, folders.

    Runs that live are left alone, and so is what a run has made.
    """
    from moorage.rehearsal.clean import clean as cleaned

    with logged(partial(narrate, narrator(quiet=quiet))):
        removed = cleaned(os.environ)
    if as_json:
        result(removed, as_json=True)
    else:
        result([f"removed {what}" for what in removed] or ["nothing is left of any run"])
