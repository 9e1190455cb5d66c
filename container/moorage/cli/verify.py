"""`moorage verify`: the proof that a program goes on as if nothing had happened."""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from moorage.cli.flags import Flags, described
from moorage.cli.help import command
from moorage.cli.run import chosen, interruptible
from moorage.cli.show import Logs, Show, announced
from moorage.cli.terminal import Json, Quiet, result
from moorage.errors import ConfigError

if TYPE_CHECKING:
    from moorage.rehearsal.job import Job
    from moorage.rehearsal.verdict import Verdict

PANEL = "Rehearsal"
CODES = {
    "0": "the same: bit-exact, or equal within 1e-6",
    "1": "not the same: it diverged, failed when interrupted, or began anew each time",
    "3": "nothing is proven: it fails when left alone, no interruption came, nothing to compare",
    "130": "it was stopped by Ctrl-C",
}


def add(app: typer.Typer) -> None:
    command(
        app,
        verify,
        PANEL,
        [
            "moorage verify",
            "moorage verify train.py -i moorage:cpu -d train=data/train -n 2 -r 2 --times 5",
            "moorage verify train.py -d train=data/train --world-sizes 2,1,4",
            "moorage verify script.py --metric 'loss=loss ([0-9.]+)' --step-regex 'epoch ([0-9]+)'",
            "moorage verify train.py --hard --sync-stops-at random --exact --json",
        ],
        codes=CODES,
    )


@described(os.environ)
def verify(
    job: Flags,
    *,
    times: Annotated[
        int,
        typer.Option("--times", min=1, metavar="N", help="Interruptions at random steps, unless --interrupt has some."),
    ] = 3,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", metavar="METRIC", help="To be compared; else those named loss.")
    ] = None,
    world_sizes: Annotated[
        str, typer.Option("--world-sizes", metavar="N,N,...", help="Run once more, on so many ranks in each attempt.")
    ] = "",
    exact: Annotated[bool, typer.Option("--exact", help="Equal within 1e-6 is not enough.")] = False,
    logs: Annotated[Logs, typer.Option("--logs", help="Whose log is shown; main is the host of rank 0.")] = Logs.NONE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prove that interruptions change nothing: the same losses and the same weights as without.

    The program is rehearsed twice, left alone and interrupted at random steps that --seed draws, and compared: its
    losses in the log, step by step, and the weights in model.tar.gz. Where they part it says at which step, and what
    usually causes it. Programs without moorage.start() can be proven too.

    With --world-sizes it runs a third time, each attempt on another number of ranks: every step has to be done, and
    losses have to end close.
    """
    from moorage.rehearsal.assemble import assemble
    from moorage.rehearsal.proof import Claim, prove
    from moorage.rehearsal.stopper import Stopper
    from moorage.rehearsal.verdict import lines

    rehearsed = assemble(job.describe(), datetime.now())
    claim = Claim(
        job=rehearsed, interruptions=times, metrics=tuple(compare or ()), sizes=_sizes(world_sizes), exact=exact
    )
    stopper = Stopper()
    show = Show(rehearsed, logs=logs, quiet=quiet)

    def begins(part: Job, what: str) -> None:
        show.tell(f"--- {what}", "bold")
        for line in announced(part, chosen(job, part)):
            show.tell(line)

    with show, interruptible(stopper, show):
        verdict = prove(claim, show, env=os.environ, stop=stopper, begins=begins)
    if verdict is None:
        raise typer.Exit(130)
    result(verdict.to_json() if as_json else lines(verdict), as_json=as_json)
    raise typer.Exit(_code(verdict))


def _code(verdict: Verdict) -> int:
    return {"same": 0, "unknown": 3}.get(verdict.answer, 1)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(
            f"--world-sizes {text!r} are not numbers", fix="give them as 2,1,4: one for each attempt"
        ) from None
