"""`moorage push`: an image of one's own into ECR, or into another registry."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moorage.cli.help import command
from moorage.cli.terminal import Json, Progress, Quiet, logged, narrate, narrator, result

PANEL = "On SageMaker"


def add(app: typer.Typer) -> None:
    command(
        app,
        push,
        PANEL,
        [
            "moorage push my-training:latest --create",
            "moorage push my-training:gpu --repository team/training --json | jq .image",
            "moorage push my-training --registry localhost:5000",
        ],
    )


def push(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Of the docker engine here, NAME:TAG.")],
    *,
    registry: Annotated[
        str, typer.Option("--registry", metavar="HOST", help="Else ECR of your account and region.")
    ] = "",
    repository: Annotated[str, typer.Option("--repository", metavar="NAME", help="Else the image's own name.")] = "",
    tag: Annotated[str, typer.Option("--tag", metavar="TAG", help="Else the image's own, and its commit.")] = "",
    source: Annotated[
        Path, typer.Option("--source", metavar="DIR", help="The git checkout that it was built from.")
    ] = Path(),
    create: Annotated[
        bool, typer.Option("--create", help="Make the repository: immutable tags, a scan of every push.")
    ] = False,
    kms_key: Annotated[
        str, typer.Option("--kms-key", metavar="ARN", help="Encrypt one that is made by this key.")
    ] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what the tag holds, where the registry lets it.")
    ] = False,
    allow_dirty: Annotated[
        bool, typer.Option("--allow-dirty", help="Though it was built of uncommitted changes; its tag says so.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Push an image under the commit that it was built of, and print what SageMaker wants to be told: its digest.

    An image that is there already is not pushed again; a tag that holds another one is never moved. REGISTRY_USER and
    REGISTRY_PASSWORD are for a registry other than ECR; by default what `docker login` stored.
    """
    from moorage.cloud.push import Wanted
    from moorage.cloud.push import push as pushed_by
    from moorage.cloud.registry import auth_of

    wanted = Wanted(
        image=image, registry=registry, repository=repository, tag=tag, source=source, create=create, kms_key=kms_key,
        overwrite=overwrite, allow_dirty=allow_dirty, ecr_host=os.environ.get("ECR_HOST", ""), auth=auth_of(os.environ),
    )  # fmt: skip
    told = narrator(quiet=quiet)
    progress = Progress("pushing", quiet=quiet)
    with logged(lambda text, style: narrate(told, text, style)):
        pushed = pushed_by(wanted, os.environ, lambda done, total: progress.tell(image, done, total))
    progress.end()
    result(pushed.to_json() if as_json else pushed.uri, as_json=as_json)
