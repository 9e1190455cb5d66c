"""The commands of the README and of docs/image.md, copied from there and run."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest

from image.console import Block, Shell, blocks
from image.containers import Containers
from support import ROOT

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "image.md")
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
LOCAL = "debian:bookworm-local"
MADE = {
    "containers": ("moorage-one", "moorage-algo-1", "moorage-serve"),
    "networks": ("moorage-net",),
    "images": ("moorage-extended:latest",),
}
"""What the documents' commands make on the engine, by the names they give."""


def the(test: str) -> Block:
    (block,) = [block for block in BLOCKS if block.test == test]
    return block


@pytest.fixture
def shell(tmp_path: Path, containers: Containers) -> Iterator[Shell]:
    """A copy of the repository. What the commands leave on the engine is removed, and what was there before is not."""
    if containers.image != "moorage:cpu":
        pytest.skip(f"the documents name moorage:cpu, and the image under test is {containers.image}")
    client = containers.client
    there = {kind: [name for name in names if exists(client, kind, name)] for kind, names in MADE.items()}
    if there["containers"] or there["networks"]:
        pytest.fail(f"left by another run, remove it first: {there}")
    yield Shell.in_a_copy(tmp_path / "moorage")
    for kind, names in MADE.items():
        for name in names:
            if name in there[kind] or not exists(client, kind, name):
                continue
            if kind == "images":
                client.images.remove(name)
            else:
                getattr(client, kind).get(name).remove(**({"force": True} if kind == "containers" else {}))


def exists(client: docker.DockerClient, kind: str, name: str) -> bool:
    try:
        getattr(client, kind).get(name)
    except docker.errors.NotFound:
        return False
    return True


def test_every_command_shown_has_a_test() -> None:
    assert BLOCKS
    for block in BLOCKS:
        assert f"test_{block.test}" in globals(), f"{block.document}: no test of {block.commands[0].line!r}"
    made = "".join(f"{command.line}\n" for block in BLOCKS for command in block.commands)
    names = set(re.findall(r"--name (\S+)|network create (\S+)|build -t (\S+)", made))
    assert {name.split(":")[0] for found in names for name in found if name} == {
        name.split(":")[0] for kind in MADE.values() for name in kind
    }


def test_demo(shell: Shell) -> None:
    assert "Nothing was lost." in shell.run(the("demo"))


def test_build(shell: Shell, containers: Containers) -> None:
    # From the local base, where there is one: then no registry may be in reach.
    builds(shell, containers, "build", {"BASE_IMAGE": LOCAL} if exists(containers.client, "images", LOCAL) else {})


def test_build_without_a_registry(shell: Shell, containers: Containers) -> None:
    if not exists(containers.client, "images", LOCAL):
        pytest.skip(f"{LOCAL} is not here, and making it takes root and a minute: `make base`")
    builds(shell, containers, "build_without_a_registry", {})


def builds(shell: Shell, containers: Containers, block: str, env: dict[str, str]) -> None:
    """Under another name, so that the image under test stays."""
    name = f"moorage-readme-{uuid.uuid4().hex[:10]}"
    shell.env |= {"IMAGE": name, **env}
    try:
        shell.run(the(block), timeout=600)
        assert "train [PROGRAM" in containers.run("train", "--help", image=f"{name}:cpu")
    finally:
        if exists(containers.client, "images", f"{name}:cpu"):
            containers.remove()
            containers.client.images.remove(f"{name}:cpu")


def test_one_host(shell: Shell) -> None:
    shell.run(the("one_host"))
    events = ledger(shell.folder / "ml" / "one")
    stopped, resumed = events["stopped"]["step"], events["resume"]["step"]
    assert stopped == resumed >= 100


def test_two_hosts(shell: Shell) -> None:
    shell.run(the("two_hosts"))
    assert (shell.folder / "ml" / "algo-1" / "model" / "model.safetensors").exists()
    assert not list((shell.folder / "ml" / "algo-2" / "model").iterdir())


def test_serve(shell: Shell) -> None:
    printed = shell.run(the("serve"))
    (scores,) = json.loads(next(line for line in printed.splitlines() if line.startswith("[[")))
    assert len(scores) == 10


def test_extend(shell: Shell) -> None:
    printed = shell.run(the("extend"))
    assert max(map(float, re.findall(r"val_accuracy=([\d.]+)", printed))) > 0.8
    assert (shell.folder / "ml" / "extended" / "model" / "model.safetensors").exists()


def test_lock(shell: Shell) -> None:
    shell.run(the("lock"))
    assert names(shell.folder / "my-image") == names(ROOT / "examples" / "extend")


def names(extend: Path) -> list[str]:
    """The packages of a lock. The versions are the newest, so another day they are others."""
    return re.findall(r"^([\w-]+)==", (extend / "requirements.lock").read_text(), re.MULTILINE)


def test_train(shell: Shell) -> None:
    shell.run(the("train"))
    assert ledger(shell.folder / "ml" / "here")["resume"]["step"] == 440


def test_rehearsal(shell: Shell) -> None:
    shell.run(the("rehearsal"), timeout=400)
    assert list((shell.folder / "ml" / "project" / "runs").glob("*/report.html"))


def ledger(job: Path) -> dict[str, dict[str, int]]:
    """The last event of each kind."""
    lines = [line for file in sorted(job.glob("checkpoints/ledger/*")) for line in file.read_text().splitlines()]
    return {event["event"]: event for event in map(json.loads, lines)}


def test_the_marker_names_the_reason(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- test: it; not run: false, it fails -->\n```console\n$ true\na  1\n$ false\n```\n")
    (block,) = blocks(document)
    assert (block.test, block.left_out) == ("it", "false")
    with pytest.raises(AssertionError, match=r"shows 'a  1' below"):
        Shell(tmp_path).run(block)
    document.write_text("\n```console\n$ false\n```\n")
    with pytest.raises(AssertionError, match=r"\$ false"):
        Shell(tmp_path).run(blocks(document)[0])
