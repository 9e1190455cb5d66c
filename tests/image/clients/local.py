"""Runs of a client in local mode, and what they left: folders, containers and a bucket of the test's own."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import docker.errors

from aws import aws_server
from image.clients.environments import environment
from image.containers import Container, Containers
from support import ROOT, JobFolder, digits, wait_until

NETWORK = "sagemaker-local"
"""What every local mode on this engine calls its network."""

DEADLINE = 150.0
"""Seconds that one run may take on a machine busy with other things."""

REGION = "eu-central-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}

# Telemetry would wait for hosts that are not there; the bucket's usual name needs an account.
SDK_CONFIG = {
    "SchemaVersion": "1.0",
    "SageMaker": {
        "PythonSDK": {"Modules": {"TelemetryOptOut": True, "Session": {"DefaultS3Bucket": "sagemaker-local"}}}
    },
}
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_HOST_LINE = re.compile(r"\S*(algo-\d+)\S* *\| ?(.*)")


@dataclass(kw_only=True)
class Outcome:
    """What a client's process left. output: all it printed; model, notes, failure: of the archives it brought back."""

    code: int
    output: str
    model: list[str]
    notes: list[dict[str, Any]]
    failure: str | None

    def lines(self, word: str = "") -> list[tuple[str, str]]:
        """(host, line) of the containers' log, as the client showed it."""
        found = (_HOST_LINE.fullmatch(line.rstrip()) for line in self.output.splitlines())
        return [(line[1], line[2]) for line in found if line and word in line[2]]


@dataclass
class LocalMode:
    """A folder with `program`, `data` and `job`, from which clients are run one after the other."""

    folder: Path
    containers: Containers
    project: str = field(default_factory=lambda: f"moorage-test-{uuid.uuid4().hex[:10]}")
    bucket: str = ""
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path, containers: Containers) -> Iterator[LocalMode]:
        local = cls(folder, containers)
        for name in ("job", "tmp"):
            (folder / name).mkdir()
        (folder / "config.yaml").write_text(json.dumps(SDK_CONFIG))
        digits(JobFolder(folder / "laid-out")).base.joinpath("input/data/train").rename(folder / "data")
        shutil.copytree(ROOT / "tests/image/clients/program", folder / "program")
        shutil.copy(ROOT / "examples/digits/train.py", folder / "program/digits.py")
        ours = not containers.client.networks.list(names=[NETWORK])
        try:
            yield local
        finally:
            for process in local._processes:
                process.kill()
            for container in local.started():
                container.engine.remove(force=True, v=True)
            for process in local._processes:
                process.communicate()  # what it had started ends with its containers
            if ours:
                with contextlib.suppress(docker.errors.APIError):  # another job has joined it
                    containers.client.networks.get(NETWORK).remove()

    @contextlib.contextmanager
    def s3(self) -> Iterator[None]:
        """An S3 that clients and containers reach: on the engine's own bridge, at the same address for both."""
        address = self.containers.client.networks.get("bridge").attrs["IPAM"]["Config"][0]
        gateway = address.get("Gateway") or str(next(ipaddress.ip_network(address["Subnet"]).hosts()))
        with aws_server(gateway) as endpoint:
            self.bucket = endpoint
            try:
                yield
            finally:
                self.bucket = ""

    def start(self, client: str, text: str) -> subprocess.Popen[str]:
        """`text` as a program in the environment of `client`, v2 or v3, in this folder."""
        (self.folder / "client.py").write_text(text)
        env = {name: os.environ[name] for name in ("HOME", "LANG", "DOCKER_HOST") if name in os.environ}
        env |= CREDENTIALS
        env |= {"AWS_ENDPOINT_URL": self.bucket} if self.bucket else {}
        env |= {
            # Debian's client before any other: newer ones may ask an older engine for what it does not know.
            "PATH": f"/usr/bin:{os.environ['PATH']}",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "COMPOSE_PROJECT_NAME": self.project,
            "PYTHONUNBUFFERED": "1",
            "SAGEMAKER_USER_CONFIG_OVERRIDE": str(self.folder / "config.yaml"),
            "TMPDIR": str(self.folder / "tmp"),
        }
        process = subprocess.Popen(
            [environment(client), "client.py"], cwd=self.folder, env=env, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def run(self, client: str, text: str) -> Outcome:
        return self.finished(self.start(client, text))

    def finished(self, process: subprocess.Popen[str]) -> Outcome:
        try:
            output, _ = process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            logs = "\n".join(container.logs() for container in self.started())
            raise AssertionError(f"no end in {DEADLINE:.0f} s:\n{logs}") from None
        self._processes.remove(process)
        output = _ANSI.sub("", output)
        folder = self._fetched(output) if self.bucket else next(self.folder.rglob("compressed_artifacts"), None)
        model = _members(folder / "model.tar.gz") if folder else {}
        data = _members(folder / "output.tar.gz") if folder else {}
        failure = data.get("failure")
        return Outcome(
            code=process.returncode,
            output=output,
            model=sorted(name for name in model if "." in name),
            notes=sorted((json.loads(text) for name, text in data.items() if "note-" in name), key=_by_host),
            failure=None if failure is None else failure.decode(),
        )

    def started(self) -> list[Container]:
        """The containers of this folder's clients, running or not."""
        # One that is being made is listed a moment before it can be looked at.
        found = self.containers.client.containers.list(
            all=True, ignore_removed=True, filters={"label": f"com.docker.compose.project={self.project}"}
        )
        return [Container(container) for container in found]

    def running(self) -> Container:
        """The first of them that runs."""

        def found() -> Container | None:
            return next((container for container in self.started() if container.running), None)

        return wait_until(found, timeout=DEADLINE, what="a container")

    def _fetched(self, output: str) -> Path | None:
        found = re.search(r"^s3://([^/\s]+)/(\S+)/model\.tar\.gz$", output, re.MULTILINE)
        if not found:
            return None
        keys = {name.lower(): value for name, value in CREDENTIALS.items()}
        s3 = boto3.client("s3", endpoint_url=self.bucket, region_name=REGION, **keys)
        folder = self.folder / "fetched"
        folder.mkdir()
        for name in ("model.tar.gz", "output.tar.gz"):
            s3.download_file(found[1], f"{found[2]}/{name}", str(folder / name))
        return folder


def _members(archive: Path) -> dict[str, bytes]:
    """The files in an archive, by their names in it."""
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def _by_host(note: dict[str, Any]) -> tuple[str, int]:
    return note["host"], note["rank"]
