"""`moorage report`: a job as one page, as a summary, or as data."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moorage.cli.help import command
from moorage.cli.terminal import Json, Quiet, logged, narrate, narrator, result
from moorage.errors import CloudError, ConfigError

if TYPE_CHECKING:
    from moorage.rehearsal.prices import Prices
    from moorage.rehearsal.report import Report

PANEL = "Rehearsal"
PAGE = "report.html"


OnDemandPrice = Annotated[
    float | None, typer.Option("--on-demand-price", metavar="PRICE", help="Of an instance and hour.")
]
SpotPrice = Annotated[float | None, typer.Option("--spot-price", metavar="PRICE", help="The same on Spot.")]
FetchPrices = Annotated[bool, typer.Option("--fetch-prices", help="Of jobs of SageMaker: ask AWS's price list.")]
Region = Annotated[
    str | None, typer.Option("--region", metavar="REGION", help="Of jobs of SageMaker; else AWS_REGION.")
]


def add(app: typer.Typer) -> None:
    command(
        app,
        report,
        PANEL,
        [
            "moorage report",
            "moorage report runs/digits-2026-01-31-12-00-00-123456 --on-demand-price 3.06 --spot-price 0.92",
            "moorage report checkpoints/ --log cloudwatch.txt -o job.html",
            "moorage report $JOB --fetch-prices",
            "moorage report --json | jq .goodput",
        ],
    )


def report(
    job: Annotated[
        Path | None,
        typer.Argument(
            metavar="[JOB]",
            help="Folder of a rehearsal, or its name; of one host; of checkpoints; or a job of SageMaker, by its name "
            "or ARN. Else the newest in runs/.",
        ),
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The page; else report.html in a rehearsal's folder, or here."
        ),
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option("--log", metavar="FILE", help="A log with the job's metric lines, in its order."),
    ] = None,
    on_demand_price: OnDemandPrice = None,
    spot_price: SpotPrice = None,
    fetch_prices: FetchPrices = False,
    region: Region = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a job did: attempts, saves and interruptions, metrics, where the time went, what Spot saves.

    One HTML page with everything in it, to be sent or printed, and a summary here. With --json the same data goes to
    stdout, and the page is written only where --output names it.
    """
    from moorage.rehearsal.report import read_report
    from moorage.rehearsal.report_page import write_page
    from moorage.rehearsal.report_text import named
    from moorage.rehearsal.summary import report_summary

    told = narrator(quiet=quiet)
    prices = prices_of(on_demand_price, spot_price)
    with (
        logged(lambda text, style: narrate(told, text, style)),
        folders_of([job or _newest()], region, priced=fetch_prices) as (folder,),
    ):
        found = read_report(folder, prices=prices, logs=log or ())
    page = output or (None if as_json else _page(found))
    if page is not None:
        written(lambda: write_page(found, page), page)
    if as_json:
        result(found.to_json(), as_json=True)
    else:
        result([*report_summary(found), "", *named([("page", str(page))])])


@contextmanager
def folders_of(jobs: Sequence[Path], region: str | None, *, priced: bool) -> Iterator[list[Path]]:
    """That of each: the one named, or of the rehearsal of that name; of a job of SageMaker one that is there for so
    long. priced: such jobs with what they cost by AWS's price list.
    """
    from moorage.rehearsal.assemble import RUNS

    found = [RUNS / job if not job.exists() and (RUNS / job).is_dir() else job for job in jobs]
    with tempfile.TemporaryDirectory(prefix="moorage-") as temporary:
        for number, job in enumerate(found):
            name = _of_sagemaker(str(job))
            if name and not job.exists():
                found[number] = Path(temporary, str(number), name)
                found[number].mkdir(parents=True)
                _fetch(name, found[number], region, priced=priced)
        yield found


def _of_sagemaker(text: str) -> str:
    """The name of a training job, if it can be one or its ARN; else ""."""
    from moorage.rehearsal.job import JOB_NAME

    name = re.sub(r"^arn:[^/]+:training-job/", "", text)
    return name if JOB_NAME.fullmatch(name) else ""


def _fetch(name: str, folder: Path, region: str | None, *, priced: bool) -> None:
    from moorage.cloud.fetched import Fetching

    try:
        Fetching(os.environ, region, priced=priced).fetch(name, folder)
    except CloudError as error:
        raise CloudError(
            f"there is no folder {name}, and {error.what}", why=error.why,
            fix=f"name the job's folder; or, if it is a job of SageMaker: {error.fix}",
        ) from None  # fmt: skip


def _newest() -> Path:
    """The folder of the newest rehearsal."""
    from moorage.rehearsal.assemble import RUNS
    from moorage.rehearsal.journal import FILE

    made = sorted((path.stat().st_mtime, path.parent) for path in RUNS.glob(f"*/{FILE}"))
    if not made:
        raise ConfigError(
            f"there is no rehearsal in {RUNS.resolve()}", fix="name the job's folder, or make one by `moorage run`"
        )
    return made[-1][1]


def written(write: Callable[[], None], page: Path) -> None:
    try:
        write()
    except OSError as error:
        raise ConfigError(
            f"the page {page} cannot be written", why=str(error.strerror), fix="name another file by --output"
        ) from None


def _page(found: Report) -> Path:
    """Beside what the rehearsal left; never among checkpoints, which belong to a job."""
    from moorage.rehearsal.journal import FILE

    return found.folder / PAGE if (found.folder / FILE).is_file() else Path(PAGE)


def prices_of(on_demand: float | None, spot: float | None) -> Prices | None:
    from moorage.rehearsal.prices import Prices

    if on_demand is None and spot is None:
        return None
    if on_demand is None or spot is None:
        raise ConfigError(
            "one price alone says nothing", fix="give both --on-demand-price and --spot-price, per hour and instance"
        )
    return Prices(on_demand=on_demand, spot=spot)
