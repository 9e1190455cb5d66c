"""`moorage plan`: what a model needs, fits on, takes, costs, and may lose, before anybody pays for it."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moorage.cli.flags import Flags, described
from moorage.cli.help import command
from moorage.cli.submit import PANEL
from moorage.cli.terminal import Json, result
from moorage.cli.watch import Region
from moorage.errors import ConfigError

MODEL, WORK, MONEY = "The model", "The work", "What it costs"


class Dtype(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def add(app: typer.Typer) -> None:
    command(
        app, plan, PANEL,
        [
            "moorage plan --params 7b --instance-types ml.p4d",
            "moorage plan train.py --samples 50m --rate 120 --price ml.g5.xlarge=1.41:0.55",
            "moorage plan --model model/ --trainable 2%",
        ],
    )  # fmt: skip


@described(os.environ, (), rehearsal=False)
def plan(
    job: Flags,
    *,
    params: Annotated[
        str | None, typer.Option("--params", metavar="N", help="Its parameters: 7b, 350m.", rich_help_panel=MODEL)
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="A folder with safetensors.", rich_help_panel=MODEL)
    ] = None,
    trainable: Annotated[
        str, typer.Option("--trainable", metavar="N|%", help="Those that are trained.", rich_help_panel=MODEL)
    ] = "100%",
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Of --params, as they are stored.", rich_help_panel=MODEL)
    ] = Dtype.FP32,
    precision: Annotated[
        Dtype, typer.Option("--precision", help="As the setting.", rich_help_panel=MODEL)
    ] = Dtype.BF16,
    optimizer_states: Annotated[
        int,
        typer.Option(
            "--optimizer-states", min=0, max=8, help="Tensors per parameter; Adam has 2.", rich_help_panel=MODEL
        ),
    ] = 2,
    types: Annotated[
        list[str] | None,
        typer.Option("--instance-types", metavar="TYPE", help="Or families, as ml.g5; else all.", rich_help_panel=WORK),
    ] = None,
    samples: Annotated[
        str | None, typer.Option("--samples", metavar="N", help="In all epochs.", rich_help_panel=WORK)
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", min=1e-9, metavar="N", help="Samples per second of one device.", rich_help_panel=WORK),
    ] = None,
    interruption_hours: Annotated[
        float, typer.Option("--interruption-hours", min=0.05, help="Between interruptions.", rich_help_panel=WORK)
    ] = 24.0,
    price: Annotated[
        list[str] | None,
        typer.Option("--price", metavar="TYPE=P[:SPOT]", help="Per hour and instance.", rich_help_panel=MONEY),
    ] = None,
    fetch_prices: Annotated[
        bool, typer.Option("--fetch-prices", help="Ask AWS's price list, on demand only.", rich_help_panel=MONEY)
    ] = False,
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Plan a job: memory per device by strategy, instances that fit, time, cost, checkpoints, and what is lost.

    Of a program, it runs here until it has built its model. What `train` will choose is chosen by the same code.
    """
    from moorage.cloud import instances
    from moorage.cloud.aws import region_of
    from moorage.cloud.plan import Plan, Work, options, saves
    from moorage.cloud.sizes import parse_amount, pick, size_of

    known = instances.known()
    wanted = pick(types, list(known)) if types else list(known)
    name, size = size_of(job.describe(), params=params, model=model, trainable=trainable, dtype=dtype, env=os.environ)
    prices = instances.parse_prices(price or ())
    if fetch_prices:
        where = region_of(os.environ, region)
        if where is None:
            raise ConfigError("--fetch-prices wants a region", fix="give --region, or set AWS_REGION")
        prices = {**instances.fetch_prices(wanted, where, os.environ), **prices}
    work = Work(samples=None if samples is None else parse_amount(samples, "--samples"), rate=rate)
    between = 3600 * interruption_hours
    found = options(
        size, [known[one] for one in wanted], precision=precision, optimizer_states=optimizer_states, work=work,
        prices=prices, between=between,
    )  # fmt: skip
    best = next((one.hosts for one in found if one.hosts), 1)
    made = Plan(
        name=name, size=size, precision=precision, options=tuple(found), between=between, work=work,
        saves=saves(size, optimizer_states, between, best), read=instances.read(),
    )  # fmt: skip
    result(made.to_json() if as_json else list(made.lines), as_json=as_json)
