"""Whether this machine, its engine and an image can do what a rehearsal needs; of what cannot, how to mend it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moorage.contract.s3 import client_options
from moorage.errors import EngineError
from moorage.rehearsal import runs
from moorage.rehearsal.containers import connect, engine_errors
from moorage.rehearsal.doctor_image import examine_image
from moorage.rehearsal.findings import Finding, State, size

NEEDED = {"docker": "docker", "pydantic": "pydantic", "jinja2": "jinja2", "tomli_w": "tomli-w"}
"""Module -> what pip calls it."""
DISK = 10 * 10**9
"""Bytes: an image and the data of a few hosts."""
SHM = 10**9


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be rehearsed. folder: where runs go. gpus, shm_size: as `docker run` has them. aws: whether S3 or the
    platform itself are to be used."""

    image: str | None = None
    platform: str | None = None
    gpus: str | None = None
    shm_size: str | None = None
    folder: Path = Path("runs")
    aws: bool = False


def examine(asked: Asked, env: Mapping[str, str]) -> Iterator[Finding]:
    """One finding after the other, as they are made."""
    yield _packages()
    try:
        client = connect(env)
    except EngineError as error:
        state = State.BAD if asked.image else State.WARN
        yield Finding(name="engine", state=state, text=f"{error.what}: {error.why}", fix=error.fix)
    else:
        try:
            yield from _engine(client)
            if asked.image:
                yield from examine_image(client, asked.image, asked.platform, asked.shm_size)
            yield _gpus(client.info(), asked.gpus)
        finally:
            client.close()
    yield _disk("disk", _existing(asked.folder), "where runs go", "name another folder by --folder")
    yield _shm()
    yield _left(env)
    if asked.aws:
        yield _aws(env)


def _packages() -> Finding:
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        return Finding(
            name="packages", state=State.BAD, text=f"not installed: {', '.join(missing)}",
            fix="pip install 'moorage[rehearsal]'",
        )  # fmt: skip
    return Finding(name="packages", state=State.OK, text="all that rehearsals need are installed")


def _engine(client: Any) -> Iterator[Finding]:
    with engine_errors("be asked what it is"):
        version, info = client.version(), client.info()
    text = f"{version['Version']}, {version['Os']}/{version['Arch']}, {info['NCPU']} cores, {size(info['MemTotal'])}"
    yield Finding(name="engine", state=State.OK, text=text)
    # It may be on another machine, or in one of its own, as Docker Desktop is.
    home = Path(info.get("DockerRootDir") or "/nonexistent")
    if os.access(home, os.R_OK):
        yield _disk("engine's disk", home, str(home), "docker system prune, or move its data-root")


def _disk(name: str, place: Path, what: str, fix: str) -> Finding:
    free = shutil.disk_usage(place).free
    state = State.OK if free >= DISK else State.WARN
    return Finding(name=name, state=state, text=f"{size(free)} free, {what}", fix="" if free >= DISK else fix)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _shm() -> Finding:
    """Of this machine: for hosts that are processes."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding(name="shm", state=State.SKIPPED, text="this system has no /dev/shm")
    total = shutil.disk_usage(place).total
    if total >= SHM:
        return Finding(name="shm", state=State.OK, text=f"{size(total)}, for hosts that are processes")
    return Finding(
        name="shm", state=State.WARN, text=f"only {size(total)}: DataLoader workers die by a bus error when it is full",
        fix="mount -o remount,size=2g /dev/shm, or use num_workers=0",
    )  # fmt: skip


def _gpus(info: Mapping[str, Any], asked: str | None) -> Finding:
    here = _named_gpus()
    runtime = "nvidia" in (info.get("Runtimes") or {}) or bool(info.get("CDISpecDirs"))
    if here and runtime:
        return Finding(name="gpus", state=State.OK, text=", ".join(here))
    if here:
        return Finding(
            name="gpus", state=State.BAD if asked else State.WARN,
            text=f"{', '.join(here)}, but the engine has no way to give them to a container",
            fix="install the NVIDIA container toolkit, and `nvidia-ctk runtime configure`",
        )  # fmt: skip
    if asked:
        return Finding(
            name="gpus", state=State.BAD, text=f"--gpus {asked}, but there is none here",
            fix="leave it out: the rehearsal then runs on the CPU",
        )  # fmt: skip
    return Finding(name="gpus", state=State.OK, text="none: rehearsals run on the CPU")


def _named_gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def _left(env: Mapping[str, str]) -> Finding:
    dead = 0
    for path in runs.entries(env):
        with runs.dead(path) as entry:
            dead += entry is not None
    if dead:
        return Finding(
            name="leftovers", state=State.WARN, text=f"of {dead} run{'s' * (dead > 1)} that died", fix="moorage clean"
        )
    return Finding(name="leftovers", state=State.OK, text="none of a run that died")


def _aws(env: Mapping[str, str]) -> Finding:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError
    except ModuleNotFoundError:
        return Finding(name="aws", state=State.BAD, text="boto3 is not installed", fix="pip install boto3")
    given = client_options(env, {})
    given["endpoint_url"] = env.get("AWS_ENDPOINT_URL_STS") or env.get("AWS_ENDPOINT_URL")
    quick = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
    try:
        with contextlib.closing(boto3.client("sts", config=quick, **given)) as client:
            caller = client.get_caller_identity()
    except (NoCredentialsError, NoRegionError, ClientError, BotoCoreError) as error:
        fix = (
            "set AWS_REGION" if isinstance(error, NoRegionError) else "sign in again: `aws sso login`, `aws configure`"
        )
        return Finding(name="aws", state=State.BAD, text=str(error), fix=fix)
    return Finding(name="aws", state=State.OK, text=f"{caller['Arn']} of account {caller['Account']}")


def as_json(findings: list[Finding]) -> list[dict[str, str]]:
    return [asdict(finding) for finding in findings]
