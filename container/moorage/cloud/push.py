"""An image into ECR, or into another registry, under the commit that it was built of: `moorage push`, `make push`."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage.cloud import commit
from moorage.cloud.ecr import Ecr, Held, Repository, parse_host
from moorage.cloud.registry import Auth, Engine, Image
from moorage.errors import CloudError, ConfigError

log = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[a-z0-9]+([._/-]+[a-z0-9]+)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be pushed where.

    image: NAME:TAG of the engine. registry: a host; "" is ECR of the account and region. repository, tag: "" for the
    image's own name, and for its tag and the commit. source: a folder of the git checkout that the image was built
    from, where its own label is not to be trusted alone. create, kms_key: make a missing ECR repository, encrypted by
    the key. overwrite: replace what the tag holds, where the registry lets it. allow_dirty: push uncommitted changes,
    with a tag that says so. ecr_host: reaches ECR's registry by another host name. auth: of a registry other than ECR.
    """

    image: str
    registry: str = ""
    repository: str = ""
    tag: str = ""
    source: Path | None = None
    create: bool = False
    kms_key: str = ""
    overwrite: bool = False
    allow_dirty: bool = False
    ecr_host: str = ""
    auth: Auth | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the image goes. name: registry and repository. auth: None for what the engine's user has stored."""

    name: str
    auth: Auth | None = field(repr=False)
    held: Held | None
    """What the tag holds there already."""
    repository: Repository | None
    """Of ECR; None for another registry."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What is in the registry now. name: registry and repository."""

    name: str
    digest: str
    tag: str
    revision: str
    repository: Repository | None

    @property
    def uri(self) -> str:
        """Names these bytes for ever, which the tag does not."""
        return f"{self.name}@{self.digest}"

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.uri,
            "digest": self.digest,
            "tag": self.tag,
            "revision": self.revision,
            "ecr": self.repository and dataclasses.asdict(self.repository),
        }


def push(wanted: Wanted, env: Mapping[str, str], tell: Callable[[int, int], None]) -> Pushed:
    """The whole of it. tell: takes the bytes pushed, and all. Raises ConfigError, EngineError or CloudError."""
    engine = Engine(env)
    image = engine.image(_tagged(wanted.image))
    revision = _revision(image, wanted.source)
    tag = remote_tag(image, revision, wanted)
    target = find_target(engine, env, image, tag, wanted)
    if target.held and holds(target.held, image):
        digest = target.held.digest
        log.info("%s:%s holds this image already", target.name, tag)
    elif target.held and not wanted.overwrite:
        raise occupied(f"{target.name}:{tag}", target.held.digest)
    else:
        log.info("pushing %s to %s:%s", image.name, target.name, tag)
        digest = engine.push(image, target.name, tag, target.auth, tell)
    return Pushed(name=target.name, digest=digest, tag=tag, revision=revision, repository=target.repository)


def _tagged(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _revision(image: Image, source: Path | None) -> str:
    """The commit, with -dirty after it if there were changes; "unknown". The image's own label is the best witness;
    but an image FROM another inherits that one's, which names a commit of another repository.
    """
    if source is None:
        return image.revision
    labelled = image.revision.partition("-")[0]
    if _COMMIT.fullmatch(labelled) and commit.has(source, labelled):
        return image.revision
    found = commit.head(source)
    if found is None:
        return "unknown"
    log.info("tagged by the commit that %s is at: the image does not say of which one it was built", source.resolve())
    return str(found)


def remote_tag(image: Image, revision: str, wanted: Wanted) -> str:
    """The tag that names the commit the image was built of. Raises ConfigError where it would not be the truth."""
    named, _, dirty = revision.partition("-")
    if dirty and not wanted.allow_dirty:
        raise ConfigError(
            f"{image.name} was built of uncommitted changes to {named[:12]}",
            why="its tag would name a commit that does not hold what is in it, and nobody could build it again",
            fix="commit, build and push again; --allow-dirty (ALLOW_DIRTY=1 of `make push`) pushes it with a tag that "
            "says so",
        )
    if wanted.tag:
        if not _TAG.fullmatch(wanted.tag):
            raise ConfigError(f"{wanted.tag!r} is not a tag", fix="use letters, digits, '_', '.' and '-', 128 at most")
        return wanted.tag
    if not _COMMIT.fullmatch(named):
        raise ConfigError(
            f"{image.name} does not say of which commit it was built",
            why=f"its label org.opencontainers.image.revision is {image.revision!r}"
            + (f", and {wanted.source.resolve()} is in no git checkout" if wanted.source else ""),
            fix="build it from a git checkout (`make build`), or name a tag by --tag (PUSH_TAG of `make push`)",
        )
    prefix = "" if image.tag == "latest" else f"{image.tag}-"
    return f"{prefix}{named[:12]}" + ("-dirty" if dirty else "")


def find_target(engine: Engine, env: Mapping[str, str], image: Image, tag: str, wanted: Wanted) -> Target:
    """Where to push to, and what is there. Raises ConfigError or CloudError."""
    own_registry, own_name = split(image.name)
    registry = wanted.registry.removeprefix("https://").rstrip("/") or own_registry
    name = wanted.repository or own_name
    if not _REPOSITORY.fullmatch(name):
        raise ConfigError(f"{name!r} is not a repository's name", fix="use small letters, digits, '-', '_', '.', '/'")
    known = parse_host(registry)
    if registry and not known:
        where = f"{registry}/{name}"
        return Target(name=where, auth=wanted.auth, held=engine.held(where, tag, wanted.auth), repository=None)

    account, region = known or ("", "")
    ecr = Ecr(env, account=account, region=region)
    repository = ecr.repository(name)
    if repository is None:
        if not wanted.create:
            raise CloudError(
                f"ECR of account {ecr.account} in {ecr.region} has no repository {name!r}",
                why="the repository or the region is another one, or nobody has made it yet",
                fix="--create (`make push ARGS=--create`) makes it, with immutable tags and a scan of every push",
            )
        repository = ecr.create(name, kms_key=wanted.kms_key)
        log.info("made the repository %s", repository.uri)
    if not repository.immutable:
        log.info("the tags of %s can be overwritten: image tag mutability IMMUTABLE would prevent it", name)
    host, _, path = repository.uri.partition("/")
    return Target(
        name=f"{wanted.ecr_host or registry or host}/{path}",
        auth=Auth(**ecr.login()),
        held=ecr.held(name, tag),
        repository=repository,
    )


def split(image: str) -> tuple[str, str]:
    """Registry ("" for none) and repository of an image's name. What has a dot, a port or is localhost is a host."""
    name = re.sub(r"(@|:)[^/]*\Z", "", image)
    first, _, rest = name.partition("/")
    return (first, rest) if rest and re.search(r"[.:]|\Alocalhost\Z", first) else ("", name)


def holds(held: Held, image: Image) -> bool:
    """Whether a tag holds `image`. An engine's id of it is the digest of its configuration, or of its manifest."""
    return held.digest in image.digests or image.id in (held.config, held.digest)


def occupied(name: str, digest: str) -> CloudError:
    return CloudError(
        f"{name} exists already and holds another image, {digest}",
        why="a tag that names a commit is never overwritten, or what runs today would not be what was tested; "
        "a second build of the same commit is another image, since times are in it",
        fix="use the one that is there, or push a new commit; --tag (PUSH_TAG of `make push`) gives this one another "
        "tag",
    )
