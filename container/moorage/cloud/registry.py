"""The docker engine as a push uses it: the image that is there, what a registry's tag holds, a push with progress.

Passwords go to the engine in its API, never into a command line or into ~/.docker/config.json.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from moorage.cloud.ecr import Held
from moorage.errors import CloudError, EngineError

log = logging.getLogger(__name__)

_REVISION = "org.opencontainers.image.revision"

_NO_ENGINE = "`make engine` starts one on Debian or Ubuntu; DOCKER_HOST names another. In CodeBuild: privileged mode"

# What engines say of registries, with the cause and the remedy.
_REFUSALS = (
    (
        r"no basic auth credentials|unauthorized|authentication required|token has expired|incorrect username",
        "the registry does not accept these credentials",
        "for ECR check AWS's credentials; for another, `docker login` or REGISTRY_USER and REGISTRY_PASSWORD",
    ),
    (
        r"denied|forbidden",
        "the registry does not allow it",
        "for ECR allow ecr:InitiateLayerUpload, UploadLayerPart, CompleteLayerUpload, PutImage and "
        "BatchCheckLayerAvailability; for another, check the account's rights on the repository",
    ),
    (
        r"immutable",
        "the tag exists and its repository lets nobody overwrite tags",
        "push a new commit, or name another tag by --tag (PUSH_TAG)",
    ),
    (
        r"name unknown|does not exist",
        "the registry has no such repository",
        "make it, or correct --repository (REPOSITORY)",
    ),
    (
        r"server gave HTTP response to HTTPS client",
        "the registry speaks HTTP, and the engine wants HTTPS of all but 127.0.0.0/8",
        "give it a certificate, or name it in the engine's insecure-registries",
    ),
    (
        r"x509|certificate",
        "the engine does not trust the registry's certificate",
        "put its CA into /etc/docker/certs.d/<registry>/ca.crt",
    ),
    (
        r"connection refused|connection reset|no such host|timeout|network is unreachable|no route to host|EOF",
        "the registry is not reached from the engine",
        "check --registry (REGISTRY, ECR_HOST), the network and the proxy of the engine",
    ),
    (r"no space left", "a disk is full, the engine's or the registry's", "`docker system df` shows the engine's"),
)

_NOT_ALLOWED = re.compile("denied|unauthorized|authentication required|no basic auth", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Auth:
    """What the engine logs in with."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of the engine. digests: those of the registries it was pushed to or pulled from."""

    name: str
    tag: str
    id: str
    revision: str
    """The git commit it was built of, with -dirty after it if there were uncommitted changes; "unknown" if not said."""
    digests: frozenset[str]


class Engine:
    """The docker engine that DOCKER_HOST of `env` names, or the machine's. Methods raise EngineError or CloudError."""

    def __init__(self, env: Mapping[str, str]) -> None:
        try:
            self._client = docker.from_env(timeout=600, environment=dict(env))
            self._client.ping()
        except DockerException as error:
            raise EngineError("no docker engine answers", why=str(error), fix=_NO_ENGINE) from None

    def image(self, name: str) -> Image:
        """The image of that name:tag."""
        try:
            image = self._client.images.get(name)
        except ImageNotFound:
            tag = name.rpartition(":")[2]
            fix = f"`make build VARIANT={tag}` builds it" if tag in ("cpu", "cuda") else "build it, or correct its name"
            raise EngineError(
                f"the image {name} is not here",
                why="it is not built yet, or another one is meant",
                fix=fix,
            ) from None
        except APIError as error:
            raise EngineError(f"the engine does not show the image {name}", why=explanation(error)) from None
        return Image(
            name=name,
            tag=name.rpartition(":")[2],
            id=str(image.id),
            revision=image.labels.get(_REVISION) or "unknown",
            digests=frozenset(digest.rpartition("@")[2] for digest in image.attrs.get("RepoDigests") or ()),
        )

    def held(self, repository: str, tag: str, auth: Auth | None) -> Held | None:
        """What `tag` holds in a registry, as the engine sees it; None where it is free."""
        try:
            data = self._client.images.get_registry_data(f"{repository}:{tag}", auth_config=header(auth))
        except NotFound:
            return None
        except APIError as error:
            # Registries of several users say so of a repository that does not exist yet; a push will tell.
            if _NOT_ALLOWED.search(explanation(error)):
                log.warning("cannot look whether %s:%s exists: %s", repository, tag, explanation(error))
                return None
            raise refusal(f"cannot look up {repository}:{tag}", explanation(error)) from None
        return Held(digest=str(data.id), config="")

    def push(self, image: Image, repository: str, tag: str, auth: Auth | None, tell: Callable[[int, int], None]) -> str:
        """Push `image` as repository:tag; its digest there. tell: takes the bytes that are pushed, and all so far."""
        what = f"cannot push {repository}:{tag}"
        try:
            self._client.images.get(image.name).tag(repository, tag)
            messages = self._client.api.push(repository, tag, stream=True, decode=True, auth_config=header(auth))
            return follow(messages, what, tell)
        except APIError as error:
            raise refusal(what, explanation(error)) from None


def header(auth: Auth | None) -> dict[str, str] | None:
    """As docker's SDK wants it; None has it read what `docker login` stored."""
    return {"username": auth.username, "password": auth.password} if auth else None


def auth_of(env: Mapping[str, str]) -> Auth | None:
    """What REGISTRY_USER and REGISTRY_PASSWORD say."""
    user, password = env.get("REGISTRY_USER"), env.get("REGISTRY_PASSWORD")
    return Auth(username=user, password=password) if user and password else None


def follow(messages: Iterable[dict[str, Any]], what: str, tell: Callable[[int, int], None]) -> str:
    """Read the engine's messages of a push to their end; the digest they name. Raises CloudError."""
    sizes: dict[str, tuple[int, int]] = {}
    digest = ""
    for message in messages:
        if "error" in message:
            raise refusal(what, str(message["error"]))
        digest = message.get("aux", {}).get("Digest", digest)
        layer, detail = message.get("id", ""), message.get("progressDetail") or {}
        if "total" in detail and "current" in detail:
            sizes[layer] = (min(detail["current"], detail["total"]), detail["total"])
        elif message.get("status") == "Pushed" and layer in sizes:
            sizes[layer] = (sizes[layer][1],) * 2
        else:
            continue
        tell(sum(done for done, _ in sizes.values()), sum(total for _, total in sizes.values()))
    if not digest:
        raise CloudError(what, why="the engine named no digest at the end of the push", fix="push again")
    return digest


def refusal(what: str, said: str) -> CloudError:
    """Cause and remedy for the words of an engine."""
    for pattern, why, fix in _REFUSALS:
        if re.search(pattern, said, re.IGNORECASE):
            return CloudError(what, why=f"{why} ({said.strip()})", fix=fix)
    return CloudError(what, why=said.strip(), fix="the engine's log may say more")


def explanation(error: APIError) -> str:
    return str(error.explanation or error)
