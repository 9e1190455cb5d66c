"""Containers, networks and folders of one test, all removed with it: the one way the image tests use an engine."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import docker
import docker.errors
from docker.models.containers import Container as EngineContainer
from docker.models.networks import Network

from support import wait_until

LABEL = "moorage.test"
"""On all that a test makes. A container that a killed test left can be found by it."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def image_name() -> str:
    """The image under test: MOORAGE_TEST_IMAGE, by default what `make build` makes."""
    return os.environ.get("MOORAGE_TEST_IMAGE", "moorage:cpu")


@dataclass
class Container:
    """One container of a test. Its folder `ml`, where it has one, is the host's side of /opt/ml."""

    engine: EngineContainer

    @property
    def name(self) -> str:
        return str(self.engine.name)

    @property
    def running(self) -> bool:
        self.engine.reload()
        return bool(self.engine.status == "running")

    def logs(self, *, stdout: bool = True, stderr: bool = True) -> str:
        return _ANSI.sub("", self.engine.logs(stdout=stdout, stderr=stderr).decode("utf-8", "replace"))

    def lines(self, word: str) -> list[str]:
        return [line for line in self.logs().splitlines() if word in line]

    def wait(self, timeout: float = 120) -> int:
        """Its exit code. Fails, with its log, after `timeout` seconds."""

        def code() -> int | None:
            self.engine.reload()
            if self.engine.status == "exited":
                return int(self.engine.attrs["State"]["ExitCode"]) + 1000
            time.sleep(0.1)
            return None

        try:
            return wait_until(code, timeout=timeout, what=f"the end of {self.name}") - 1000
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def wait_for(self, text: str, timeout: float = 120, *, times: int = 1) -> None:
        """Until its log holds `text`, so many times. Fails at once when it ends without."""

        def said() -> bool:
            ended = not self.running
            if self.logs().count(text) >= times:
                return True
            assert not ended, f"{self.name} ended before it said {text!r}:\n{self.logs()}"
            time.sleep(0.1)
            return False

        wait_until(said, timeout=timeout, what=f"{text!r} in the log of {self.name}")

    def execute(self, *command: str) -> str:
        """What `command` prints inside. Fails unless it exits 0."""
        code, output = self.engine.exec_run(list(command))
        assert code == 0, output.decode("utf-8", "replace")
        return str(output.decode("utf-8", "replace"))

    def signal(self, name: str) -> None:
        self.engine.kill(name)

    def start_again(self) -> None:
        """As `docker start`: the same command in the same file system. Its log goes on."""
        self.engine.start()

    def stop(self, grace: int = 30) -> float:
        """As `docker stop -t grace`: SIGTERM, and SIGKILL after `grace` seconds. Seconds it took."""
        started = time.monotonic()
        self.engine.stop(timeout=grace)
        return time.monotonic() - started


@dataclass
class Containers:
    """Makes containers and networks, and removes them at the end, whatever happened."""

    client: docker.DockerClient
    image: str = field(default_factory=image_name)
    _made: list[EngineContainer] = field(default_factory=list)
    _networks: list[Network] = field(default_factory=list)
    _folders: list[Path] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator[Self]:
        client = docker.from_env(timeout=120)
        containers = cls(client)
        try:
            yield containers
        finally:
            containers.remove()
            client.close()

    def start(
        self,
        *command: str,
        image: str = "",
        env: Mapping[str, str] | None = None,
        ml: Path | None = None,
        mounts: Mapping[Path | str, str] | None = None,
        network: Network | str | None = None,
        aliases: Sequence[str] = (),
        **options: Any,
    ) -> Container:
        """Start `command` (none: the image's own). ml: the folder to be /opt/ml. mounts: more, folder -> path, or
        path:ro. network: one of `network()`, or "none". aliases: its names there. options: as docker's SDK has them.
        """
        volumes = [f"{folder}:{path}" for folder, path in {**({ml: "/opt/ml"} if ml else {}), **(mounts or {})}.items()]
        self._folders += [ml] if ml else []
        if network == "none":
            options["network_mode"] = "none"
        name = options.pop("name", f"moorage-test-{uuid.uuid4().hex[:10]}")
        made = self.client.containers.create(
            image or self.image, list(command) or None, environment=dict(env or {}), volumes=volumes, name=name,
            labels={LABEL: "1"}, **options,
        )  # fmt: skip
        self._made.append(made)
        if isinstance(network, Network):
            self.client.networks.get("bridge").disconnect(made)
            network.connect(made, aliases=list(aliases))
        made.start()
        return Container(made)

    def run(self, *command: str, timeout: float = 120, **options: Any) -> str:
        """What `command` prints in a container of its own. Fails unless it exits 0."""
        container = self.start(*command, **options)
        code = container.wait(timeout)
        assert code == 0, f"exit code {code}\n{container.logs()}"
        return container.logs()

    def network(self) -> Network:
        """A bridge network of the test's own, on which containers find each other by their aliases."""
        made = self.client.networks.create(f"moorage-test-{uuid.uuid4().hex[:10]}", labels={LABEL: "1"})
        self._networks.append(made)
        return made

    def remove(self) -> None:
        for container in self._made:
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True, v=True)
        for network in self._networks:
            with contextlib.suppress(docker.errors.NotFound):
                network.remove()
        if os.getuid() != 0:
            # What containers wrote is root's, and a test that another user runs could not remove it.
            for folder in self._folders:
                owner = ["chown", "-R", f"{os.getuid()}:{os.getgid()}", "/opt/ml"]
                self.client.containers.run(self.image, owner, volumes=[f"{folder}:/opt/ml"], remove=True)
        self._made, self._networks, self._folders = [], [], []
