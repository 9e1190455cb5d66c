"""`moorage status`, `logs`, `stop`, `list`: jobs of SageMaker, from their first minute to what they cost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from moorage.cli.help import command
from moorage.cli.submit import PANEL
from moorage.cli.terminal import Json, Quiet, logged, narrate, narrator, result
from moorage.errors import CloudError, ConfigError

if TYPE_CHECKING:
    from moorage.cloud.described import Described
    from moorage.cloud.logs import Line, Logs
    from moorage.cloud.watching import Jobs

ENDS = {"0": "it goes on, or completed", "1": "it failed", "3": "it was stopped before it completed"}
_CODES = {"Failed": 1, "Stopped": 3}

STATUS_SECONDS, LOG_SECONDS, STOP_SECONDS = (10.0, 60.0), (2.0, 20.0), (2.0, 10.0)
"""Between two questions: at first, and at most."""

Name = Annotated[str, typer.Argument(metavar="JOB", help="Its name, or the ARN that `moorage submit` printed.")]
Region = Annotated[str | None, typer.Option("--region", metavar="REGION", help="Else AWS_REGION, or the profile's.")]


class Ended(StrEnum):
    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"
    FAILED = "Failed"
    STOPPING = "Stopping"
    STOPPED = "Stopped"


def add(app: typer.Typer) -> None:
    command(
        app, status, PANEL, ["moorage status digits-2026-01-31-12-00-00-123", "moorage status --watch $JOB"], codes=ENDS
    )
    command(app, logs, PANEL, ["moorage logs -f $JOB", "moorage logs $JOB --host algo-2 --tail 100"])
    command(app, stop, PANEL, ["moorage stop $JOB", "moorage stop $JOB --wait"])
    command(app, list_, PANEL, ["moorage list", "moorage list digits --status Failed -n 5 --json"], name="list")


def status(
    job: Name,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Tell each change until it is over.")] = False,
    region: Region = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show how a job is: its statuses as a timeline, what is billed, metrics, its newest checkpoint, and why it failed.

    Ctrl-C ends the watching, never the job.
    """
    from moorage.cloud.watching import Jobs, Pace

    told, name = narrator(quiet=quiet), _name(job)
    with logged(lambda text, style: narrate(told, text, style)), _leaving_it(name):
        jobs = Jobs(os.environ, region)
        if watch:
            for found in jobs.watch(name, Pace(*STATUS_SECONDS)):
                narrate(told, _changed(found))
        else:
            found = jobs.describe(name)
        found = jobs.with_checkpoint(found)
        result(found.to_json() if as_json else list(found.lines), as_json=as_json)
    raise typer.Exit(_CODES.get(found.status, 0))


def _changed(job: Described) -> str:
    phase = job.phases[-1] if job.phases else None
    said = f": {phase.message}" if phase and phase.message and phase.status == job.secondary else ""
    return f"{job.status}, {job.secondary}{said}" if job.secondary != job.status else f"{job.status}{said}"


def logs(
    job: Name,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    host: Annotated[str | None, typer.Option("--host", metavar="algo-N", help="Of this host only.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=1, metavar="N", help="Begin N lines ago.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Of the last so much time: 30s, 10m, 2h.")
    ] = None,
    region: Region = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print a job's log, all hosts' lines by their times.

    Ctrl-C ends the following, never the job. --json prints a line of JSON for each.
    """
    from moorage.cloud.logs import JOBS, Logs
    from moorage.cloud.watching import Jobs

    told, name = narrator(quiet=quiet), _name(job)
    with logged(lambda text, style: narrate(told, text, style)), _leaving_it(name):
        jobs = Jobs(os.environ, region)
        described = jobs.describe(name)
        prefix = f"{name}/{host}-" if host else f"{name}/"
        found = Logs(os.environ, region, group=JOBS, prefix=prefix, since=_moment(since), tail=tail)
        lines = found.new()
        if tail is not None:
            lines = iter(list(lines)[-tail:])
        shown = _show(lines, several=described.hosts > 1, as_json=as_json)
        if follow:
            _follow(jobs, name, found, several=described.hosts > 1, as_json=as_json)
        elif not shown:
            narrate(told, f"nothing is there yet: the job is at {described.secondary or described.status}")


def _follow(jobs: Jobs, name: str, found: Logs, *, several: bool, as_json: bool) -> None:
    from moorage.cloud.aws import Passing
    from moorage.cloud.watching import Pace

    pace, over = Pace(*LOG_SECONDS), False
    while True:
        try:
            # First whether it is over: then what comes after is all there will be.
            ended = jobs.describe(name).is_over
            shown = _show(found.new(), several=several, as_json=as_json)
        except Passing as error:
            pace.refused(error)
        else:
            if over and not shown:
                return
            over = ended
            (pace.moved if shown else pace.idle)()
        pace.wait()


def _show(lines: Iterator[Line], *, several: bool, as_json: bool) -> int:
    import json

    number = 0
    for line in lines:
        if as_json:
            moment = datetime.fromtimestamp(line.moment, UTC).isoformat()
            print(json.dumps({"time": moment, "host": line.host, "text": line.text}), flush=True)
        else:
            print(f"{line.host} | {line.text}" if several else line.text, flush=True)
        number += 1
    return number


def _moment(since: str | None) -> float | None:
    from moorage.rehearsal.spelling import duration

    return None if since is None else time.time() - duration(since)


def stop(
    job: Name,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is over.")] = False,
    region: Region = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Stop a job: SIGTERM now, which saves its state, SIGKILL 120 seconds later."""
    from moorage.cloud.watching import Jobs, Pace

    told, name = narrator(quiet=quiet), _name(job)
    with logged(lambda text, style: narrate(told, text, style)), _leaving_it(name):
        jobs = Jobs(os.environ, region)
        found = jobs.describe(name)
        if found.is_over:
            narrate(told, f"it is over already: {found.status}")
        else:
            jobs.stop(name)
            kept = f"its state is kept in {found.checkpoints}" if found.checkpoints else "it keeps no checkpoints"
            narrate(told, f"asked to stop; {kept}")
            if wait:
                for now in jobs.watch(name, Pace(*STOP_SECONDS)):
                    narrate(told, _changed(now))
                    found = now
            else:
                found = jobs.describe(name)
        found = jobs.with_checkpoint(found)
        result(found.to_json() if as_json else list(found.lines), as_json=as_json)


def list_(
    containing: Annotated[str, typer.Argument(metavar="[TEXT]", help="Only jobs whose names have it.")] = "",
    *,
    status: Annotated[Ended | None, typer.Option("--status", help="Only jobs that are at it.")] = None,
    most: Annotated[int, typer.Option("-n", min=1, metavar="N", help="At most so many.")] = 20,
    region: Region = None,
    as_json: Json = False,
) -> None:
    """List training jobs, the newest first."""
    from moorage.cloud.described import clock, iso
    from moorage.cloud.watching import Jobs
    from moorage.rehearsal.report_text import seconds_text

    found = Jobs(os.environ, region).list(containing=containing, status=status or "", most=most)
    now, rows = datetime.now(UTC), []
    for one in found:
        seconds = ((one.get("TrainingEndTime") or now) - one["CreationTime"]).total_seconds()
        rows.append((one["TrainingJobName"], one["TrainingJobStatus"], clock(one["CreationTime"]), seconds))
    if as_json:
        made = [
            {"name": one["TrainingJobName"], "status": row[1], "created": iso(one["CreationTime"]), "seconds": row[3]}
            for one, row in zip(found, rows, strict=True)
        ]
        result(made, as_json=True)
        return
    width = max((len(row[0]) for row in rows), default=0)
    lines = [f"{row[0].ljust(width)}  {row[1]:<10}  {row[2]}  {seconds_text(row[3])}" for row in rows]
    result(lines or ["there are no such jobs"])


def _name(job: str) -> str:
    """Of an ARN, what stands behind the last slash."""
    name = job.rpartition("/")[2]
    if not name:
        raise ConfigError(f"{job!r} is not the name of a job", fix="`moorage list` shows those there are")
    return name


@contextmanager
def _leaving_it(name: str) -> Iterator[None]:
    """Whatever ends the watching does not end the job, and whoever watched is told so."""
    try:
        yield
    except KeyboardInterrupt:
        narrate(narrator(), f"the job goes on; `moorage status {name}` looks again, `moorage stop {name}` ends it")
        raise typer.Exit(130) from None
    except CloudError as error:
        if "credentials have expired" in error.why or "sign-in to AWS has ended" in error.why:
            error = CloudError(error.what, why=error.why, fix=f"{error.fix}. The job goes on meanwhile")
        raise error from None
