"""`moorage tune`: search hyperparameters by a tuning job of SageMaker, or by trials on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moorage.cli.flags import Flag, Flags, described
from moorage.cli.help import command
from moorage.cli.report import written
from moorage.cli.run import interruptible
from moorage.cli.submit import FLAGS as SUBMIT_FLAGS
from moorage.cli.submit import judged
from moorage.cli.terminal import Json, Quiet, logged, narrate, narrator, result
from moorage.cli.tune_show import TuneShow, settings
from moorage.errors import ConfigError

if TYPE_CHECKING:
    from moorage.cloud.results import Results
    from moorage.cloud.study import Study

PANEL = "Rehearsal"
SEARCH = "What is searched"
CODES = {
    "0": "done: the study has a best trial",
    "1": "no trial has a value of the objective",
    "130": "it was stopped by Ctrl-C, and can go on",
}


def _ranges(texts: list[str], env: Mapping[str, str]) -> Mapping[str, Any]:
    from moorage.rehearsal.spelling import pairs

    return pairs(texts, "range")


FLAGS = (
    Flag(names=("--objective",), place=("tune", "objective"), panel=SEARCH, metavar="max|min:METRIC",
         help="What makes a trial better: max:val_accuracy, min:val_loss."),
    Flag(names=("--range",), place=("tune", "ranges"), takes=list, panel=SEARCH, metavar="NAME=RANGE", reads=_ranges,
         help="lr=1e-4:1e-1:log, layers=1:8 (whole numbers), batch_size=16,32,64. Scalings: auto, linear, log, "
         "reverse-log."),
    Flag(names=("--strategy",), place=("tune", "strategy"), panel=SEARCH, metavar="STRATEGY",
         help="bayesian, random, grid (lists only), or hyperband, which stops most trials early."),
    Flag(names=("--trials",), place=("tune", "trials"), takes=int, metavar="N", panel=SEARCH,
         help="Training jobs in all; else 10, and all of a grid."),
    Flag(names=("--parallel",), place=("tune", "parallel"), takes=int, metavar="N", panel=SEARCH,
         help="Training jobs at once."),
    Flag(names=("--early-stopping/--no-early-stopping",), place=("tune", "early_stopping"), takes=bool, panel=SEARCH,
         help="Stop trials that are worse than the median; hyperband does without."),
    Flag(names=("--min-resource",), place=("tune", "min_resource"), takes=int, metavar="N", panel=SEARCH,
         help="Of hyperband: reports before a trial may be stopped."),
    Flag(names=("--max-resource",), place=("tune", "max_resource"), takes=int, metavar="N", panel=SEARCH,
         help="Of hyperband: reports of a trial that runs to its end; else its hyperparameter epochs."),
    Flag(names=("--target",), place=("tune", "target"), takes=float, metavar="VALUE", panel=SEARCH,
         help="The objective at which it ends."),
    Flag(names=("--patience",), place=("tune", "patience"), takes=int, metavar="N", panel=SEARCH,
         help="Trials without a better one after which it ends."),
    Flag(names=("--max-tuning",), place=("tune", "max_run"), metavar="TIME", panel=SEARCH,
         help="MaxRuntimeInSeconds of the whole tuning job: 8h."),
    Flag(names=("--tune-seed",), place=("tune", "seed"), takes=int, metavar="N", panel=SEARCH,
         help="Of what is drawn; the same seed draws the same."),
)  # fmt: skip


def add(app: typer.Typer) -> None:
    command(
        app,
        tune,
        PANEL,
        [
            "moorage tune train.py --local --objective max:val_accuracy --range lr=1e-4:1e-1:log --trials 20",
            "moorage tune --local --strategy hyperband -p epochs=27 --trials 20 --parallel 2",
            "moorage tune --local --resume digits-260131-120000",
            "moorage tune --strategy hyperband --trials 50 --parallel 5 --max-wait 2d --dry-run",
        ],
        codes=CODES,
    )


@described(os.environ, (*FLAGS, *SUBMIT_FLAGS))
def tune(
    job: Flags,
    *,
    local: Annotated[bool, typer.Option("--local", help="On this machine, each trial rehearsed.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="STUDY", help="With --local: go on with a study that was stopped or killed."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the request, checked; no credentials are needed.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the hyperparameters that make the objective best: many training jobs, some of them stopped early.

    The job file's [tune] says what flags say; flags win. Without --local it is a tuning job of SageMaker, checked first
    as a job is by `moorage submit`. With --local each trial is a rehearsal on this machine, and is stopped as the
    platform stops it; the folder of the study keeps all of it.

    Ctrl-C stops the local trials at work with their state saved; --resume goes on with them, also after a crash.
    """
    if not local and resume is None:
        _on_sagemaker(job, dry_run=dry_run, as_json=as_json, quiet=quiet)
        return
    if dry_run:
        raise ConfigError("--dry-run is of tuning jobs on SageMaker", fix="leave --local and --resume out")
    from moorage.cloud.results import results
    from moorage.cloud.tune_page import PAGE, commands, write_page
    from moorage.cloud.tuner import Tuner
    from moorage.rehearsal.stopper import Stopper

    stopper = Stopper()
    with _study(job, resume) as study:
        over = sum(one.state is not None for one in study.store.trials())
        show = TuneShow(study.tuning, over=over, quiet=quiet)
        with show, interruptible(stopper, show):
            for line in _announced(study):
                show.tell(line)
            ended = Tuner(study, show, env=os.environ, stop=stopper).run()
        found = results(study, ended)
        written(lambda: write_page(found, study.job.program), found.folder / PAGE)
        again = list(commands(found, study.job.program))
    if as_json:
        result({**found.to_json(), "page": str(found.folder / PAGE), "again": again}, as_json=True)
    else:
        result([*_summary(found), *(f"  $ {line}" for line in again), f"page {found.folder / PAGE}"])
    if ended == "stop":
        show.tell(f"to go on: moorage tune --local --resume {found.folder}")
        raise typer.Exit(130)
    raise typer.Exit(0 if found.best is not None else 1)


def _on_sagemaker(job: Flags, *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    from moorage.cloud.tune import plan, send

    told = narrator(quiet=quiet)
    with logged(lambda text, style: narrate(told, text, style)), plan(
        job.describe(), datetime.now(), os.environ, dry=dry_run
    ) as planned:  # fmt: skip
        judged(planned.findings, told)
        if dry_run:
            result(planned.request, as_json=True)
            return
        arn = send(planned, os.environ)
        made = {"name": planned.tuning.name, "arn": arn, "region": planned.base.region}
        trials = f"{planned.tuning.total} trials, {planned.tuning.parallel} at once"
        narrate(told, f"{trials}; `moorage list {planned.tuning.name}` shows them")
        result(made if as_json else arn, as_json=as_json)


def _study(job: Flags, resume: Path | None) -> AbstractContextManager[Study]:
    from moorage.cloud import study

    if resume is None:
        return study.begin(job.describe(), datetime.now())
    return study.resume(resume, job.given, datetime.now())


def _announced(study: Study) -> Iterator[str]:
    from moorage.cloud.space import described as spelled

    tuning, job = study.tuning, study.job
    where = f"in containers of {job.image}" if job.engine == "docker" else "as plain processes of this machine"
    yield f"{tuning.name}: {tuning.total} trials of {job.program or 'the program of the image'}, {where}"
    yield f"{tuning.strategy} search for {tuning.objective}, {tuning.parallel} at once; its folder is {study.folder}"
    for one in tuning.ranges:
        yield f"  {one.name}: {spelled(one)}"


def _summary(found: Results) -> Iterator[str]:
    yield f"{found.tuning.name}: {found.ended}"
    best = found.best
    if best is not None:
        yield f"best {best.best} {settings(best.hyperparameters)}"
    yield f"{found.steps} of {found.steps_to_the_end} steps, {found.counts()}"
