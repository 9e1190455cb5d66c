"""`image/build` on copies of the tree, each free to be changed; what it made is removed with the test."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import docker
import docker.errors

from support import ROOT

LOCAL_BASE = "debian:bookworm-local"

_SETTINGS = ("VARIANT", "IMAGE", "TAG", "EFA", "COMPILER", "NO_CACHE", "EFA_URL", "EFA_SHA256")
_COPIED = (
    "Dockerfile",
    ".dockerignore",
    "container",
    "image",
    "requirements",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


@dataclass(frozen=True, kw_only=True)
class Built:
    """How a build ended. error: its last line, where it failed. layers: digests, the base's first."""

    code: int
    output: str
    seconds: float
    layers: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def error(self) -> str:
        line = self.output.rstrip().rpartition("\n")[2]
        return line.removeprefix("error: ") if line.startswith("error: ") else ""


@dataclass
class Builds:
    """Builds under names of its own, which `remove` removes again."""

    client: docker.DockerClient
    name: str = field(default_factory=lambda: f"moorage-test-{uuid.uuid4().hex[:10]}")
    _names: set[str] = field(default_factory=set)
    _images: set[str] = field(default_factory=set)

    def base(self) -> dict[str, str]:
        """BASE_IMAGE for engines that reach no registry, where it is there and nothing else is asked for."""
        try:
            self.client.images.get(LOCAL_BASE)
        except docker.errors.ImageNotFound:
            return {}
        return {"BASE_IMAGE": os.environ.get("BASE_IMAGE", LOCAL_BASE)}

    def run(self, folder: Path = ROOT, *, timeout: float = 290, **given: str) -> Built:
        """`image/build` in `folder`, with these in its environment."""
        env = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
        started = time.monotonic()
        done = subprocess.run(
            [str(folder / "image" / "build")],
            env={**env, **self.base(), "IMAGE": self.name, **given},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        seconds = time.monotonic() - started
        if done.returncode:
            return Built(code=done.returncode, output=done.stdout, seconds=seconds)
        name = f"{self.name}:{given.get('TAG', 'cpu')}"
        image = self.client.images.get(name)
        self._names.add(name)
        self._images.add(image.id)
        return Built(
            code=0,
            output=done.stdout,
            seconds=seconds,
            layers=tuple(image.attrs["RootFS"]["Layers"]),
            labels=image.attrs["Config"]["Labels"],
        )

    def makes(self, folder: Path = ROOT, **given: str) -> Built:
        """`run`, which must succeed."""
        built = self.run(folder, **given)
        assert built.code == 0, built.output
        return built

    def remove(self) -> None:
        """By name first: what a build made from the cache can be the very image under test, which keeps its own."""
        for name in self._names:
            self.client.images.remove(name)
        for image in self._images:
            with contextlib.suppress(docker.errors.ImageNotFound):
                if not self.client.images.get(image).tags:
                    self.client.images.remove(image)
        self._names.clear()
        self._images.clear()


def copy_of_the_tree(folder: Path) -> Path:
    """What a build is made of, and no git."""
    folder.mkdir()
    for name in (*_COPIED, *(name for name in ("train", "serve") if (ROOT / name).exists())):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, folder / name)
    return folder


def change(path: Path, pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> None:
    """Every match of `pattern` in a file; there is one at least."""
    text, number = re.subn(pattern, replacement, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert number, f"{path} has no {pattern}"
    path.write_text(text, encoding="utf-8")
