"""Jobs in real containers: a folder for each host, laid out like /opt/ml, and started as often as a test needs."""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from image.containers import Container, Containers
from support import ROOT, JobFolder, digits

DEADLINE = 170.0
"""Seconds that a job may take on a machine busy with other things."""

EPOCHS = 12
"""Of digits, where a test interrupts them: seconds of training, so that there is something to interrupt."""

Weights = dict[str, torch.Tensor]


class ContainerJob:
    """A job of `hosts` hosts, named algo-1, algo-2, ... on a network of their own, with `ranks` ranks each."""

    def __init__(
        self, containers: Containers, base: Path, *, hosts: int = 1, ranks: int = 1, interface: str = "eth0"
    ) -> None:
        self.containers = containers
        self.names = [f"algo-{number + 1}" for number in range(hosts)]
        # Unsorted, as the platform may write them.
        self.folders = {name: JobFolder(base / name, hosts=self.names[::-1], host=name) for name in self.names}
        self.network = containers.network() if hosts > 1 else None
        self.settings = {"ranks_per_host": ranks, "join_timeout": 100, "grace": 30}
        for name in self.names:
            self.describe(name, network_interface_name=interface)

    def describe(self, name: str, **resource: Any) -> None:
        """What resourceconfig.json says on host `name`."""
        given = {"current_host": name, "hosts": self.names[::-1], "network_interface_name": "eth0"}
        self.folders[name].write("resourceconfig", {**given, **resource})

    def digits(self, *, epochs: int = EPOCHS, **hyperparameters: object) -> ContainerJob:
        """Give every host the digits example and its data."""
        for folder in self.folders.values():
            given = {"epochs": epochs, "moorage_log_every": 10, **hyperparameters}
            digits(folder, **{name: str(value) for name, value in given.items()})
            shutil.copytree(ROOT / "examples" / "digits", folder.base / "code")
        return self

    def program(self, text: str, **files: str) -> ContainerJob:
        """Give every host this train.py. files: more of its code folder, as requirements_txt="..."."""
        for folder in self.folders.values():
            folder.code(train=textwrap.dedent(text))
            for name, content in files.items():
                folder.file(f"code/{name.replace('_', '.')}", content)
        return self

    def start(self, *names: str, env: Mapping[str, str] | None = None, **options: Any) -> list[Container]:
        """A container for each host, or for those named. options: as `Containers.start` has them."""
        settings = {f"MOORAGE_{name.upper()}": str(value) for name, value in self.settings.items()}
        # Two ranks on two cores: torch's own choice of threads would have them fight.
        given = {**settings, "OMP_NUM_THREADS": "1", **(env or {})}
        return [
            self.containers.start(
                env=given, ml=self.folders[name].base, **{"network": self.network, "aliases": [name], **options}
            )
            for name in names or self.names
        ]

    def finishes(self, **options: Any) -> list[Container]:
        """Started, and left alone to the end."""
        started = self.start(**options)
        assert [host.wait(DEADLINE) for host in started] == [0] * len(started), reports(started)
        return started

    def belongs_to(self, uid: int) -> None:
        """Give the folders to that user, as `docker run --user` needs it."""
        for folder in self.folders.values():
            for path in (folder.base, *folder.base.rglob("*")):
                os.chown(path, uid, uid)

    def failure(self, name: str = "algo-1") -> str | None:
        """What the failure file of a host says; None when there is none. It fits what the platform shows."""
        path = self.folders[name].failure
        if not path.exists():
            return None
        assert path.stat().st_size <= 1024
        return path.read_text(encoding="utf-8")

    def events(self, kind: str, name: str = "algo-1") -> list[dict[str, Any]]:
        """Of the ledger of one host, oldest first."""
        return [event for event in self.folders[name].ledger() if event["event"] == kind]

    def weights(self) -> Weights:
        return load_file(self.folders["algo-1"].model / "model.safetensors")

    def check_nothing_lost(self) -> None:
        """Every start went on at the step at which the one before had stopped."""
        stopped = 0
        for event in self.folders["algo-1"].ledger():
            if event["event"] == "resume":
                assert event["step"] == stopped, self.folders["algo-1"].ledger()
            elif event["event"] == "stopped":
                stopped = event["step"]


def metrics(host: Container) -> list[str]:
    """The metric lines of a host."""
    return [line for line in host.logs(stderr=False).splitlines() if line.startswith("#metric ")]


def last_step(host: Container) -> int:
    """That a metric line names."""
    return max(map(int, re.findall(r"^#metric step=(\d+) ", host.logs(stderr=False), re.MULTILINE)), default=0)


def reports(hosts: list[Container]) -> str:
    return "\n".join(f"--- {host.name}\n{host.logs()}" for host in hosts)


def same(some: Weights, others: Weights) -> bool:
    """Bit for bit."""
    return some.keys() == others.keys() and all(some[name].equal(others[name]) for name in some)


@functools.cache
def left_alone(strategy: str) -> Weights:
    """Of the digits, trained on two ranks of one host without an interruption; once for all tests."""
    with tempfile.TemporaryDirectory() as folder, Containers.opened() as containers:
        job = ContainerJob(containers, Path(folder), ranks=2).digits(moorage_strategy=strategy)
        job.finishes()
        return job.weights()
