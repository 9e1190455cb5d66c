"""`moorage submit`: a training job of SageMaker, from the job file and flags that were rehearsed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moorage.cli.flags import Flag, Flags, described
from moorage.cli.help import command
from moorage.cli.terminal import Json, Quiet, logged, narrate, narrator, result
from moorage.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from moorage.cloud.finding import Finding

PANEL = "On SageMaker"
RUN, MONEY, PLACE = "What runs", "What it costs", "Where it lies"


class Printed(StrEnum):
    BOTO3 = "boto3"
    CLI = "cli"
    PIPELINE = "pipeline"
    SDK_V2 = "sdk-v2"
    SDK_V3 = "sdk-v3"


def _flag(name: str, key: str, panel: str, help: str, **more: Any) -> Flag:
    return Flag(names=(name,), place=("submit", key), panel=panel, help=help, **more)


FLAGS = (
    _flag("--image-uri", "image", RUN, "In ECR, by digest, as `moorage push` prints it.", metavar="URI"),
    _flag("--role", "role", RUN, "The job's role: its ARN, or its name.", metavar="ROLE"),
    _flag("--region", "region", RUN, "Else AWS_REGION, or the profile's.", metavar="REGION"),
    _flag("--group", "groups", RUN, "An instance group, in place of --hosts: gpu=ml.g5.xlarge*2.", takes=list,
          metavar="NAME=TYPE*N"),
    _flag("--spot/--no-spot", "spot", MONEY, "Managed Spot; else whether there is a --max-wait.", takes=bool),
    _flag("--keep-alive", "keep_alive", MONEY, "Keep the instances warm for the next job: 10m.", metavar="TIME"),
    _flag("--volume-gb", "volume_gb", MONEY, "Else 30, and none where instances have storage.", takes=int, metavar="N"),
    _flag("--bucket", "bucket", PLACE, "Of code, output and checkpoints; else sagemaker-REGION-ACCOUNT.",
          metavar="BUCKET"),
    _flag("--checkpoints-s3", "checkpoints", PLACE, 's3://BUCKET/PREFIX, or "none"; else under the job\'s name.',
          metavar="URI"),
    _flag("--checkpoint-name", "checkpoint_name", PLACE,
          "A prefix that stays: a new job of this name goes on where the last one ended.", metavar="NAME"),
    _flag("--output-s3", "output", PLACE, "S3OutputPath.", metavar="URI"),
    _flag("--uncompressed/--compressed", "uncompressed", PLACE, "The model as files, for large ones.", takes=bool),
    _flag("--allow", "allow", RUN, "Codes of findings that do not stop it.", takes=list, metavar="CODE"),
)  # fmt: skip


def add(app: typer.Typer) -> None:
    command(
        app,
        submit,
        PANEL,
        [
            "moorage submit train.py --image-uri $IMAGE --role training --instance-type ml.g5.2xlarge --max-wait 12h",
            "moorage submit --dry-run",
            "moorage submit --print sdk-v3 > launch.py && moorage submit --upload",
        ],
        codes={"78": "the request is wrong, and each finding says where, why and what to do"},
    )


@described(os.environ, FLAGS, rehearsal=False)
def submit(
    job: Flags,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the request, checked; no credentials are needed.")
    ] = False,
    printed: Annotated[
        Printed | None, typer.Option("--print", help="Print a program that creates the same job, instead of doing it.")
    ] = None,
    upload: Annotated[
        bool, typer.Option("--upload", help="Upload the code, for a program that --print printed, and create nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Create a training job of SageMaker: the one that was rehearsed, from the same job file and flags.

    The request is checked first, without AWS: by AWS's own model of it, and by rules for what only its documentation
    says. Errors stop it, warnings do not. The code is packed as git sees it, and uploaded once under its hash.
    """
    from moorage.cloud.printing import PRINTERS
    from moorage.cloud.submit import plan, send, upload_code

    told = narrator(quiet=quiet)
    dry = dry_run or printed is not None
    with logged(lambda text, style: narrate(told, text, style)), plan(
        job.describe(), datetime.now(), os.environ, dry=dry
    ) as planned:  # fmt: skip
        judged(planned.findings, told)
        if printed is not None:
            result(PRINTERS[printed](planned.request, planned.region).rstrip("\n"))
        elif dry:
            result(planned.request, as_json=True)
        elif upload:
            uri = upload_code(planned, os.environ)
            result({"code": uri} if as_json else uri or "there is no code to upload: the image has it", as_json=as_json)
        else:
            arn = send(planned, os.environ)
            made = {"name": planned.submission.name, "arn": arn, "region": planned.region}
            result(made if as_json else arn, as_json=as_json)


def _said(finding: Finding) -> str:
    parts = [f"{finding.place}: {finding.what} ({finding.code})", finding.why, finding.fix]
    return f"{finding.severity}: {'. '.join(part.rstrip('.') for part in parts if part)}"


def judged(findings: Sequence[Finding], told: Console) -> None:
    """Tell them. Raises ConfigError where there are errors."""
    from moorage.cloud.finding import stops

    for finding in findings:
        narrate(told, _said(finding), "bold red" if finding.severity == "error" else "bold yellow")
    if stops(findings):
        codes = ", ".join(dict.fromkeys(one.code for one in findings if one.severity == "error"))
        raise ConfigError(
            "the job is not created: the request is wrong", why=f"the findings above: {codes}",
            fix="correct them; --allow CODE lets one pass that you know better of",
        )  # fmt: skip
