"""Pushes the image to ECR, or to another registry, under the commit that it was built of. `make push`.

    REGISTRY       an ECR registry (default: that of the AWS account and region), or another, such as localhost:5000
    REPOSITORY     its repository, default moorage
    IMAGE, TAG     the image here, default moorage:<variant>
    PUSH_TAG       its tag there, default <TAG>-<first 12 digits of the commit>
    ALLOW_DIRTY=1  pushes an image that was built of uncommitted changes, its tag says so
    ECR_HOST       reaches ECR's registry by another host name: an endpoint of one's own network, a proxy, a stand-in
    REGISTRY_USER, REGISTRY_PASSWORD  of a registry other than ECR; by default what `docker login` stored
    REPORTS        the folder for image-<variant>.json, default build/reports

Prints registry/repository@digest, and writes it with tag and revision to image-<variant>.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from docker_api import Auth, Engine, Image
from ecr import Ecr, Held, Repository, parse_host

from moorage.errors import CloudError, ConfigError, MoorageError


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the image goes. name: registry and repository. auth: None for what the engine's user has stored."""

    name: str
    auth: Auth | None = dataclasses.field(repr=False)
    held: Held | None
    """What the tag holds there already."""
    repository: Repository | None
    """Of ECR; None for another registry."""


def main(argv: Sequence[str] | None = None) -> int:
    """Push; the exit code is 0, 2 for wrong usage, or that of the error."""
    parser = argparse.ArgumentParser("make push", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--create", action="store_true", help="make the ECR repository where it is missing")
    parser.add_argument("--kms-key", default="", metavar="ARN", help="encrypt a repository that is made by this key")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what the tag holds, where the registry lets it"
    )
    arguments = parser.parse_args(argv)
    try:
        push(os.environ, arguments)
    except MoorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def push(env: Mapping[str, str], arguments: argparse.Namespace) -> None:
    """The whole of it. Raises ConfigError or CloudError."""
    variant = env.get("VARIANT") or "cpu"
    engine = Engine()
    image = engine.image(f"{env.get('IMAGE') or 'moorage'}:{env.get('TAG') or variant}")
    tag = remote_tag(image, env)
    target = find_target(engine, env, tag, arguments)
    if target.held and holds(target.held, image):
        digest = target.held.digest
        say(f"{target.name}:{tag} holds this image already")
    elif target.held and not arguments.overwrite:
        raise occupied(f"{target.name}:{tag}", target.held.digest)
    else:
        say(f"pushing {image.name} to {target.name}:{tag}")
        digest = engine.push(image, target.name, tag, target.auth)
    report = {
        "image": f"{target.name}@{digest}",
        "digest": digest,
        "tag": tag,
        "revision": image.revision,
        "ecr": target.repository and dataclasses.asdict(target.repository),
    }
    reports = Path(env.get("REPORTS") or "build/reports")
    reports.mkdir(parents=True, exist_ok=True)
    (reports / f"image-{variant}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(report["image"])


def remote_tag(image: Image, env: Mapping[str, str]) -> str:
    """The tag that names the commit the image was built of. Raises ConfigError where it would not be the truth."""
    commit, _, dirty = image.revision.partition("-")
    if dirty and env.get("ALLOW_DIRTY") != "1":
        raise ConfigError(
            f"{image.name} was built of uncommitted changes to {commit[:12]}",
            why="its tag would name a commit that does not hold what is in it, and nobody could build it again",
            fix="commit, `make build`, and push again; ALLOW_DIRTY=1 pushes it with a tag that says so",
        )
    if tag := env.get("PUSH_TAG"):
        if not re.fullmatch(r"\w[\w.-]{0,127}", tag, re.ASCII):
            raise ConfigError(f"PUSH_TAG={tag} is not a tag", fix="use letters, digits, '_', '.' and '-', 128 at most")
        return tag
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ConfigError(
            f"{image.name} does not say of which commit it was built",
            why=f"its label org.opencontainers.image.revision is {image.revision!r}",
            fix="build it from a git checkout by `make build`, or name a tag by PUSH_TAG",
        )
    return f"{image.tag}-{commit[:12]}" + ("-dirty" if dirty else "")


def find_target(engine: Engine, env: Mapping[str, str], tag: str, arguments: argparse.Namespace) -> Target:
    """Where to push to, and what is there. Raises ConfigError or CloudError."""
    registry = (env.get("REGISTRY") or "").removeprefix("https://").rstrip("/")
    name = env.get("REPOSITORY") or "moorage"
    if not re.fullmatch(r"[a-z0-9]+([._/-]+[a-z0-9]+)*", name):
        raise ConfigError(
            f"REPOSITORY={name} is not a repository's name", fix="use small letters, digits, '-', '_', '.', '/'"
        )
    known = parse_host(registry)
    if registry and not known:
        where = f"{registry}/{name}"
        user, password = env.get("REGISTRY_USER"), env.get("REGISTRY_PASSWORD")
        auth = Auth(username=user, password=password) if user and password else None
        return Target(name=where, auth=auth, held=engine.held(where, tag, auth), repository=None)

    account, region = known or ("", env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "")
    ecr = Ecr(env, account=account, region=region)
    repository = ecr.repository(name)
    if repository is None:
        if not arguments.create:
            raise CloudError(
                f"ECR of account {ecr.account} in {ecr.region} has no repository {name!r}",
                why="REPOSITORY or the region is another one, or nobody has made it yet",
                fix="`make push ARGS=--create` makes it, with immutable tags and a scan of every push",
            )
        repository = ecr.create(name, kms_key=arguments.kms_key)
        say(f"made the repository {repository.uri}")
    if not repository.immutable:
        say(f"the tags of {name} can be overwritten: image tag mutability IMMUTABLE would prevent it")
    host, _, path = repository.uri.partition("/")
    auth = Auth(**ecr.login())
    return Target(
        name=f"{env.get('ECR_HOST') or registry or host}/{path}",
        auth=auth,
        held=ecr.held(name, tag),
        repository=repository,
    )


def holds(held: Held, image: Image) -> bool:
    """Whether a tag holds `image`. An engine's id of it is the digest of its configuration, or of its manifest."""
    return held.digest in image.digests or image.id in (held.config, held.digest)


def occupied(name: str, digest: str) -> CloudError:
    return CloudError(
        f"{name} exists already and holds another image, {digest}",
        why="a tag that names a commit is never overwritten, or what runs today would not be what was tested; "
        "a second build of the same commit is another image, since times are in it",
        fix="use the one that is there, or push a new commit; PUSH_TAG gives this one another tag",
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
