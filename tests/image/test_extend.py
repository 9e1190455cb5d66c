"""An image FROM ours, as examples/extend makes it: what it adds, what it leaves as it is, and what does not build."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image.console import client_that_builds
from image.containers import Containers
from image.job import ContainerJob
from support import ROOT
from wheels import locked, make_wheel

EXTEND = ROOT / "examples" / "extend"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

Build = Callable[..., str]

FILES = """
import os, pathlib
for top in ("/opt/venv/lib", "/opt/moorage"):
    for path in sorted(pathlib.Path(top).rglob("*")):
        if path.is_file():
            print(path, path.stat().st_size, path.stat().st_mtime)
"""


@pytest.fixture
def build(containers: Containers) -> Iterator[Build]:
    """`build(context, **arguments)` gives the image's name. Removed at the end."""
    made: list[str] = []

    def build(context: Path, **arguments: str) -> str:
        name = f"moorage-test-{uuid.uuid4().hex[:10]}"
        options = [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
        if CERTIFICATES.exists():
            options += ["--secret", f"id=ca,src={CERTIFICATES}"]
        docker = [client_that_builds(), "build", "--progress=plain", "--tag", name, *options, str(context)]
        done = subprocess.run(
            docker, env={"DOCKER_BUILDKIT": "1", "HOME": "/nonexistent"}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        made.append(name)
        return name

    yield build
    containers.remove()
    for name in reversed(made):
        containers.client.images.remove(name)


def test_it_adds_the_program_and_the_lock_and_nothing_else(
    tmp_path: Path, containers: Containers, build: Build
) -> None:
    extended = build(EXTEND, MOORAGE=containers.image)
    before, after = (set(containers.run("python", "-c", FILES, image=image).splitlines()) for image in ("", extended))
    assert len(before) > 10_000
    assert before <= after, "torch, moorage and all other files are the same, times included"
    assert {line.split("/site-packages/")[1].split("/")[0] for line in after - before} == {
        *("einops", "einops-0.8.2.dist-info", "lion_pytorch", "lion_pytorch-0.2.5.dist-info")
    }
    ours, theirs = (containers.client.images.get(image).attrs for image in (containers.image, extended))
    layers = ours["RootFS"]["Layers"]
    assert theirs["RootFS"]["Layers"][: len(layers)] == layers
    assert theirs["Size"] - ours["Size"] < 5e6
    for name in ("Cmd", "Entrypoint", "Env", "StopSignal", "User", "WorkingDir"):
        assert ours["Config"].get(name) == theirs["Config"].get(name), name

    job = ContainerJob(containers, tmp_path, ranks=2).digits(epochs=3)
    shutil.rmtree(job.folders["algo-1"].base / "code")
    (host,) = job.finishes(image=extended, network="none", read_only=True, tmpfs={"/tmp": ""})
    assert host.lines("baked into the image")
    assert "val_accuracy=" in host.logs()
    assert job.weights()["4.weight"].shape == (10, 256)


def test_a_lock_that_does_not_fit_the_image_does_not_build(
    tmp_path: Path, containers: Containers, build: Build
) -> None:
    """Wheels of the test's own, in a base that looks nowhere else."""
    base = tmp_path / "base"
    torch = make_wheel(base / "wheels", "torch", "2.12.0")
    lonely = make_wheel(base / "wheels", "lonely", requires="absent>=1")
    picky = make_wheel(base / "wheels", "picky", requires="torch<2.13")
    from_here = "ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels"
    (base / "Dockerfile").write_text(f"FROM {containers.image}\n{from_here}\nCOPY wheels /wheels\n")
    offline = build(base)

    mine = tmp_path / "extend"
    shutil.copytree(EXTEND, mine)

    def refused(lock: str) -> str:
        (mine / "requirements.lock").write_text(lock)
        with pytest.raises(AssertionError) as error:
            build(mine, MOORAGE=offline)
        return str(error.value)

    assert "torch==2.13.0, but you have torch 2.12.0" in refused(locked(torch))
    assert "lonely 1.0 requires absent, which is not installed" in refused(locked(lonely))
    assert "picky 1.0 has requirement torch<2.13, but you have torch 2.13.0" in refused(locked(picky))
    assert "DO NOT MATCH THE HASHES" in refused(locked(picky).replace("sha256:", "sha256:0")[:-2] + "\n")
    assert "all requirements must have their versions pinned" in refused("lonely\n").lower()

    # The tool that writes the lock refuses as well, and before anything is written.
    (mine / "requirements.in").write_text("picky\n")
    container = containers.start("python", "/extend/lock.py", image=offline, mounts={mine: "/extend:ro"})
    assert container.wait() == 1
    assert "picky 1.0 depends on torch<2.13" in container.logs()
    assert "--hash" not in container.logs()
