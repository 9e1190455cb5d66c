"""Whether SageMaker could start an image: looked at without running anything of it."""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moorage import __version__
from moorage.rehearsal import runs
from moorage.rehearsal.containers import LABEL, engine_errors, remove
from moorage.rehearsal.findings import Finding, State, size

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The engine's own, where the image sets none."""
_LINK, _FOLDER = 1 << 27, 1 << 31
"""Bits of Go's os.FileMode."""
_MOST_LINKS = 8
_HEAD = 64 * 1024
SMALL_SHM = 64 * 2**20
_SHELL, _EXEC = re.compile(rb"#!\s*\S*(env\s+)?\S*\b(ba|da|z)?sh\b"), re.compile(rb"^\s*exec\s", re.MULTILINE)
_INITS = ("tini", "dumb-init", "catatonit", "docker-init")


@dataclass(frozen=True, kw_only=True)
class File:
    """path: where it really is. head: its beginning."""

    path: str
    executable: bool
    head: bytes


def examine_image(client: Any, name: str, platform: str | None, shm_size: str | None) -> Iterator[Finding]:
    import docker.errors

    with engine_errors(f"look at the image {name}"):
        try:
            image = client.images.get(name)
        except docker.errors.ImageNotFound:
            yield Finding(
                name="image", state=State.BAD, text=f"{name} is not here",
                fix="build it (`make build`), or `docker pull` it",
            )  # fmt: skip
            return
        engine = client.version()
    yield Finding(name="image", state=State.OK, text=f"{name}, {size(image.attrs['Size'])}")
    yield _platform(image.attrs, engine, platform)
    config = image.attrs.get("Config") or {}
    with engine_errors(f"make a container of {name}"):
        container = client.containers.create(
            name, ["train"], labels=_labelled(), network_mode="none", platform=platform
        )
    try:
        yield _train(_found(container, "train", config.get("Env") or ()))
        yield from _entry(config)
        yield _shm(container.attrs["HostConfig"].get("ShmSize") or 0, shm_size)
    finally:
        remove(container)
    yield _labels(config.get("Labels") or {})


def _labelled() -> dict[str, str]:
    """By which `moorage clean` finds it, where somebody kills the doctor: the lock of a run that is no more."""
    return {LABEL: "doctor", runs.LOCK_LABEL: "/nonexistent", runs.MACHINE_LABEL: runs.machine()}


def _platform(image: Mapping[str, Any], engine: Mapping[str, Any], asked: str | None) -> Finding:
    theirs, ours = f"{image['Os']}/{image['Architecture']}", f"{engine['Os']}/{engine['Arch']}"
    if theirs in (ours, asked):
        return Finding(name="platform", state=State.OK, text=theirs)
    return Finding(
        name="platform", state=State.BAD, text=f"the image is for {theirs}, the engine runs {ours}",
        fix=f"build it for {ours}, or --platform {theirs} where the engine can emulate it",
    )  # fmt: skip


def _train(file: File | None) -> Finding:
    if file is None:
        return Finding(
            name="train", state=State.BAD, text="there is no `train` on the image's PATH, and SageMaker calls it",
            fix="COPY an executable `train` to /usr/local/bin, or make the image FROM moorage",
        )  # fmt: skip
    if not file.executable:
        return Finding(
            name="train", state=State.BAD, text=f"{file.path} is not executable", fix=f"RUN chmod 755 {file.path}"
        )
    if _SHELL.match(file.head) and not _EXEC.search(file.head):
        return Finding(
            name="train", state=State.WARN,
            text=f"{file.path} is a shell script without `exec`: SIGTERM stops at the shell, and nothing is saved",
            fix="begin its last command with `exec`",
        )  # fmt: skip
    return Finding(name="train", state=State.OK, text=file.path)


def _entry(config: Mapping[str, Any]) -> Iterator[Finding]:
    """ENTRYPOINT and CMD. A shell form ignores what comes behind the image's name, and keeps SIGTERM for itself."""
    entry, command = config.get("Entrypoint") or [], config.get("Cmd") or []
    if entry[:2] in (["/bin/sh", "-c"], ["/bin/bash", "-c"]):
        yield Finding(
            name="entry point", state=State.BAD, text=f"ENTRYPOINT is in shell form: {' '.join(entry[2:])}",
            fix='write it as a list, ENTRYPOINT ["..."], or leave it out',
        )  # fmt: skip
    elif entry and posixpath.basename(entry[0]) in _INITS:
        yield Finding(
            name="entry point", state=State.WARN, text=f"ENTRYPOINT {entry[0]}: SageMaker's guide has no init there",
            fix="leave it out; PID 1 has to be `train` itself",
        )  # fmt: skip
    else:
        yield Finding(
            name="entry point",
            state=State.OK,
            text=f"exec form: {' '.join(entry)}" if entry else "none: `train` is PID 1",
        )
    if command != ["train"] and not entry:
        yield Finding(
            name="command", state=State.WARN,
            text=f"CMD is {' '.join(command) or 'empty'}: the SDK's local mode (v3) gives none of its own",
            fix='CMD ["train"]',
        )  # fmt: skip


def _shm(given: int, asked: str | None) -> Finding:
    if asked is not None or given > SMALL_SHM:
        return Finding(name="shm of hosts", state=State.OK, text=asked or size(given))
    text = f"{size(given)}: DataLoader workers die by a bus error when it is full"
    return Finding(
        name="shm of hosts", state=State.WARN, text=text,
        fix="--shm-size 2g, or num_workers=0",
    )  # fmt: skip


def _labels(labels: Mapping[str, str]) -> Finding:
    if labels.get("org.opencontainers.image.title") != "moorage":
        return Finding(name="labels", state=State.OK, text="not one of ours: what its own `train` does counts")
    version = labels.get("org.opencontainers.image.version", "?")
    revision = labels.get("org.opencontainers.image.revision", "")[:12]
    text = f"moorage {version}" + (f", revision {revision}" if revision else "")
    if version.split("+")[0] != __version__:
        return Finding(
            name="labels", state=State.WARN, text=f"{text}; here is {__version__}", fix="build the image anew"
        )
    return Finding(name="labels", state=State.OK, text=text)


def _found(container: Any, name: str, env: Any) -> File | None:
    """The first of that name on the image's PATH, links followed."""
    path = next((entry.partition("=")[2] for entry in env if entry.startswith("PATH=")), _PATH)
    unusable = None
    for folder in path.split(":"):
        file = _file(container, posixpath.join(folder or "/", name))
        if file is not None and file.executable:
            return file
        unusable = unusable or file
    return unusable


def _file(container: Any, path: str) -> File | None:
    import docker.errors

    for _ in range(_MOST_LINKS):
        try:
            stream, facts = container.get_archive(path)
        except docker.errors.NotFound:
            return None
        mode = int(facts["mode"])
        if mode & _LINK:
            stream.close()
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), facts["linkTarget"]))
        elif mode & _FOLDER:
            stream.close()
            return None
        else:
            return File(path=path, executable=bool(mode & 0o111), head=_head(stream))
    return None


def _head(stream: Any) -> bytes:
    """Of the one file in the archive."""
    data = b""
    for chunk in stream:
        data += chunk
        if len(data) >= _HEAD:
            break
    stream.close()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        member = tar.next()
        content = tar.extractfile(member) if member is not None else None
        return content.read(_HEAD // 2) if content is not None else b""
