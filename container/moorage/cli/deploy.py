"""`moorage deploy`, `moorage undeploy`: endpoints of SageMaker."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated

import typer

from moorage.cli.help import command
from moorage.cli.submit import PANEL
from moorage.cli.terminal import Json, Quiet, logged, narrate, narrator, result
from moorage.cli.watch import Region

SECONDS = (10.0, 30.0)
"""Between two looks at the endpoint: at first, and at most."""

SIZE, WHAT = "How large", "What it serves"


def add(app: typer.Typer) -> None:
    command(
        app, deploy, PANEL,
        [
            "moorage deploy digits --job $JOB --instance-type ml.g5.xlarge",
            "moorage deploy digits --job $JOB --instance-type ml.c7i.large --min 1 --max 4 --requests 600",
            "moorage deploy digits --job $JOB --instance-type ml.g5.xlarge --dry-run",
        ],
    )  # fmt: skip
    command(app, undeploy, PANEL, ["moorage undeploy digits"])


def deploy(
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="Its name; one that exists is updated.")],
    *,
    instance_type: Annotated[
        str, typer.Option("--instance-type", metavar="TYPE", help="ml.g5.xlarge.", rich_help_panel=SIZE)
    ],
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="JOB", help="The training job whose model it is.", rich_help_panel=WHAT),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="URI", help="In S3, instead of the job's.", rich_help_panel=WHAT),
    ] = None,
    image_uri: Annotated[
        str | None,
        typer.Option("--image-uri", metavar="URI", help="Else the image that trained it.", rich_help_panel=WHAT),
    ] = None,
    role: Annotated[
        str | None, typer.Option("--role", metavar="ARN", help="Else the job's.", rich_help_panel=WHAT)
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="A setting of `serve`.", rich_help_panel=WHAT),
    ] = None,
    least: Annotated[int, typer.Option("--min", min=1, metavar="N", help="Instances.", rich_help_panel=SIZE)] = 1,
    most: Annotated[
        int | None,
        typer.Option("--max", min=1, metavar="N", help="Scale up to so many.", rich_help_panel=SIZE),
    ] = None,
    target: Annotated[
        float,
        typer.Option("--requests", min=1, metavar="N", help="Per instance and minute, to scale by.",
                     rich_help_panel=SIZE),
    ] = 1000.0,
    startup: Annotated[
        int | None,
        typer.Option("--startup-timeout", min=60, max=3600, metavar="SECONDS", help="Else by the model's size.",
                     rich_help_panel=SIZE),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the requests; create nothing.")] = False,
    region: Region = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Serve the model of a finished job at an endpoint, by the image that trained it.

    Waits until it answers. What fails is taken back: a new endpoint is deleted, an old one goes on as it was.
    """
    from moorage.cloud.deploy import Deployment
    from moorage.cloud.endpoint import Wanted, model_of, refuse, requests
    from moorage.cloud.watching import Pace
    from moorage.rehearsal.spelling import pairs

    told = narrator(quiet=quiet)
    wanted = Wanted(
        endpoint=endpoint, instance_type=instance_type, least=least, most=most, target=target,
        image=image_uri, model=model, role=role, environment=pairs(env or [], "variable"), startup=startup,
    )  # fmt: skip
    with logged(lambda text, style: narrate(told, text, style)):
        deployment = Deployment(os.environ, region)
        trained = deployment.job(job.rpartition("/")[2]) if job else {}
        size = deployment.size(model_of(wanted, trained))
        made = requests(wanted, trained, size, datetime.now(UTC))
        refuse(made.findings())
        if dry_run:
            result(made.to_json(), as_json=True)
            return
        try:
            found = deployment.create(made, Pace(*SECONDS))
        except KeyboardInterrupt:
            narrate(told, f"{endpoint} goes on by itself; `moorage undeploy {endpoint}` removes it")
            raise typer.Exit(130) from None
    answer = {"endpoint": endpoint, "arn": found["EndpointArn"], "model": made.name, "instance_type": instance_type}
    lines = [found["EndpointArn"]]
    if not as_json:
        narrate(told, f"ask it by `moorage predict --endpoint {endpoint}`; billed until `moorage undeploy {endpoint}`")
    result(answer if as_json else lines, as_json=as_json)


def undeploy(
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="Its name.")],
    *,
    region: Region = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Delete an endpoint, and the configurations and models that `deploy` made for it. The model in S3 stays."""
    from moorage.cloud.deploy import Deployment

    told = narrator(quiet=quiet)
    with logged(lambda text, style: narrate(told, text, style)):
        removed = Deployment(os.environ, region).remove(endpoint)
    result(removed if as_json else [f"removed {what}" for what in removed], as_json=as_json)
