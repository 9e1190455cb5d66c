"""Pushes the image to ECR, or to another registry, under the commit that it was built of. `make push`.

    REGISTRY       an ECR registry (default: that of the AWS account and region), or another, such as localhost:5000
    REPOSITORY     its repository, default moorage
    IMAGE, TAG     the image here, default moorage:<variant>
    PUSH_TAG       its tag there, default <TAG>-<first 12 digits of the commit>
    ALLOW_DIRTY=1  pushes an image that was built of uncommitted changes, its tag says so
    ECR_HOST       reaches ECR's registry by another host name: an endpoint of one's own network, a proxy, a stand-in
    REGISTRY_USER, REGISTRY_PASSWORD  of a registry other than ECR; by default what `docker login` stored
    REPORTS        the folder for image-<variant>.json, default build/reports

Prints registry/repository@digest, and writes it with tag and revision to image-<variant>.json. `moorage push` is the
same for an image of one's own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from moorage.cli.terminal import Progress, logged
from moorage.cloud.push import Wanted, push
from moorage.cloud.registry import auth_of
from moorage.errors import MoorageError


def main(argv: Sequence[str] | None = None) -> int:
    """Push; the exit code is 0, 2 for wrong usage, or that of the error."""
    parser = argparse.ArgumentParser("make push", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--create", action="store_true", help="make the ECR repository where it is missing")
    parser.add_argument("--kms-key", default="", metavar="ARN", help="encrypt a repository that is made by this key")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what the tag holds, where the registry lets it"
    )
    arguments = parser.parse_args(argv)
    env = os.environ
    variant = env.get("VARIANT") or "cpu"
    wanted = Wanted(
        image=f"{env.get('IMAGE') or 'moorage'}:{env.get('TAG') or variant}",
        registry=env.get("REGISTRY", ""),
        repository=env.get("REPOSITORY") or "moorage",
        tag=env.get("PUSH_TAG", ""),
        allow_dirty=env.get("ALLOW_DIRTY") == "1",
        ecr_host=env.get("ECR_HOST", ""),
        auth=auth_of(env),
        **vars(arguments),
    )
    try:
        print(report(wanted, env, Path(env.get("REPORTS") or "build/reports") / f"image-{variant}.json"))
    except MoorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def report(wanted: Wanted, env: Mapping[str, str], path: Path) -> str:
    """Push, and write what was pushed to `path`; the image's reference."""
    progress = Progress("pushing")
    with logged(lambda text, style: print(text, file=sys.stderr, flush=True)):
        pushed = push(wanted, env, lambda done, total: progress.tell(wanted.image, done, total))
    progress.end()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(pushed.to_json(), indent=2) + "\n", encoding="utf-8")
    return pushed.uri


if __name__ == "__main__":
    sys.exit(main())
