"""`moorage compare`: jobs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moorage.cli.help import command
from moorage.cli.report import (
    PANEL,
    FetchPrices,
    OnDemandPrice,
    Region,
    SpotPrice,
    folders_of,
    prices_of,
    written,
)
from moorage.cli.terminal import Json, Quiet, logged, narrate, narrator, result

PAGE = Path("compare.html")


def add(app: typer.Typer) -> None:
    command(
        app,
        compare,
        PANEL,
        [
            "moorage compare runs/lr-2026-01-31-12-00-00-123456 runs/lr-2026-01-31-12-05-00-123456",
            "moorage compare runs/lr-* -o lr.html --on-demand-price 3.06 --spot-price 0.92",
            "moorage compare checkpoints-a/ checkpoints-b/ --json | jq .settings_that_differ",
            "moorage compare $JOB $OTHER_JOB --fetch-prices",
        ],
    )


def compare(
    jobs: Annotated[
        list[Path],
        typer.Argument(
            metavar="JOB JOB...",
            help="Folders of rehearsals, or their names; of hosts; of checkpoints; or jobs of SageMaker, by their "
            "names or ARNs.",
        ),
    ],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page; else compare.html, here.")
    ] = None,
    on_demand_price: OnDemandPrice = None,
    spot_price: SpotPrice = None,
    fetch_prices: FetchPrices = False,
    region: Region = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show jobs beside each other: settings that differ, curves, time, goodput, cost.

    One HTML page with everything in it, and a table here. Settings come from the ledger beside the checkpoints.
    """
    from moorage.rehearsal.compare import Comparison
    from moorage.rehearsal.compare_page import write_page
    from moorage.rehearsal.report import read_report
    from moorage.rehearsal.report_text import named

    prices = prices_of(on_demand_price, spot_price)
    told = narrator(quiet=quiet)
    with (
        logged(lambda text, style: narrate(told, text, style)),
        folders_of(jobs, region, priced=fetch_prices) as folders,
    ):
        comparison = Comparison(jobs=tuple(read_report(folder, prices=prices) for folder in folders))
    page = output or (None if as_json else PAGE)
    if page is not None:
        written(lambda: write_page(comparison, page), page)
    if as_json:
        result(comparison.to_json(), as_json=True)
    else:
        result([*comparison.text(), "", *named([("page", str(page))])])
