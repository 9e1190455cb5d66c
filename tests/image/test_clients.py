"""The snippets of docs/clients.md: the SageMaker SDKs in local mode, from environments of their own, and docker run."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import docker
import pytest

from conftest import FULL
from image.clients.environments import require_compose
from image.clients.local import DEADLINE, LocalMode
from image.clients.page import PAGE, snippet
from image.containers import LABEL, Containers, image_name
from support import ROOT

GIVEN = {"epochs": 1, "lr": 0.002, "amsgrad": True, "optimizer": "adam", "layers": [1, 2], "schedule": None}


@dataclass(frozen=True, kw_only=True)
class Client:
    """One way to start the image. title: its heading in docs/clients.md. version: of the SDK.

    trains: whether it starts `train`. joined: whether two instances are one job.
    """

    title: str
    version: str
    trains: bool = True
    joined: bool = True
    s3: bool = False

    def program(self, *, image: str = "", instances: int = 1, **hyperparameters: object) -> str:
        changes = {
            "instance_count=1": f"instance_count={instances}",
            '{"epochs": 1, "lr": 0.002}': repr({**GIVEN, **hyperparameters}),
        }
        text = snippet(self.title, changes=changes)
        return text.replace('"my-digits"', f'"{image}"').replace('"moorage:cpu"', f'"{image_name()}"')


V2_IMAGE = Client(title="SDK v2, Estimator, program in the image", version="v2")
V2_SOURCE = Client(title="SDK v2, Estimator with source_dir", version="v2")
V2_PYTORCH = Client(title="SDK v2, PyTorch", version="v2", s3=True)
V3_IMAGE = Client(title="SDK v3, ModelTrainer, program in the image", version="v3")
V3_COMMAND = Client(title="SDK v3, ModelTrainer, command", version="v3")
V3_ENTRY = Client(title="SDK v3, ModelTrainer, entry_script", version="v3", trains=False, joined=False)
V3_TORCHRUN = Client(title="SDK v3, ModelTrainer, Torchrun", version="v3", trains=False)
CLIENTS = (V2_IMAGE, V2_SOURCE, V2_PYTORCH, V3_IMAGE, V3_COMMAND, V3_ENTRY, V3_TORCHRUN)


@pytest.fixture
def local(tmp_path: Path, containers: Containers) -> Iterator[LocalMode]:
    require_compose()
    with LocalMode.opened(tmp_path, containers) as opened:
        yield opened


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image made FROM ours, with the program in it."""
    folder = tmp_path_factory.mktemp("baked")
    for name in ("image/clients/program/train.py", "../examples/digits/train.py"):
        source = ROOT / "tests" / name
        (folder / ("digits.py" if "digits" in name else "train.py")).write_bytes(source.read_bytes())
    (folder / "Dockerfile").write_text(f"FROM {image_name()}\nCOPY *.py /opt/program/\n")
    client = docker.from_env()
    tag = f"moorage-test-{uuid4().hex[:10]}"
    client.images.build(path=str(folder), tag=tag, rm=True, labels={LABEL: "1"})
    yield tag
    client.images.remove(tag)
    client.close()


@pytest.mark.parametrize(
    ("client", "instances"),
    [(client, 2) for client in (CLIENTS if FULL else (V2_IMAGE, V3_ENTRY))]
    + [(client, 1) for client in CLIENTS if FULL or client not in (V2_IMAGE, V3_ENTRY)],
    ids=lambda given: getattr(given, "title", given),
)
def test_a_client_trains(client: Client, instances: int, local: LocalMode, baked: str) -> None:
    text = client.program(image=baked, instances=instances)
    started = time.monotonic()
    with local.s3() if client.s3 else contextlib.nullcontext():
        outcome = local.run(client.version, text)
    print(f"{client.title}, {instances}: {time.monotonic() - started:.1f} s")

    assert outcome.code == 0, outcome.output
    assert {"model.json", "model.safetensors", "example.npy", "code/digits.py"} <= {*outcome.model}, outcome.output
    assert outcome.failure is None
    hosts = [note["host"][:6] for note in outcome.notes]
    assert hosts == [f"algo-{number + 1}" for number in range(instances)], outcome.output
    world_size = instances if client.joined else 1
    assert [note["world_size"] for note in outcome.notes] == [world_size] * instances
    assert [note["rank"] for note in outcome.notes] == list(range(instances)) if client.joined else [0] * instances
    for note in outcome.notes:
        assert note["hyperparameters"] == GIVEN, "each of its own type, as it was given"
        assert note["channel"] == "/opt/ml/input/data/train"
        assert ("/opt/moorage/bin/train" in note["pid1"]) == client.trains, note["pid1"]

    metrics = [(host, line.split(" epoch")[0]) for host, line in outcome.lines("#metric ")]
    reporting = hosts[:1] if client.joined else hosts
    steps = [f"#metric step={step}" for step in (20, 40, 44)]
    assert sorted(metrics) == sorted((host, step) for host in reporting for step in steps), outcome.output
    if client.trains:
        ranks = [f"attempt 0: rank {number} of {instances} on {host}" for number, host in enumerate(hosts)]
        assert all(outcome.lines(line) for line in ranks), outcome.output
        assert all((host, "moorage: exit code 0") in outcome.lines() for host in hosts), outcome.output
    alone = outcome.lines("nothing joined them")
    assert sorted(host for host, _ in alone) == ([] if client.joined or instances == 1 else hosts), outcome.output


@pytest.mark.parametrize("client", [V2_SOURCE, V3_COMMAND, V3_ENTRY], ids=lambda client: client.title)
def test_a_failure_reaches_the_client_with_its_reason(client: Client, local: LocalMode) -> None:
    """Of two hosts with `train`. The SDK's own driver has no more to say in the failure file than the exit code."""
    instances = 2 if client.trains else 1
    outcome = local.run(client.version, client.program(instances=instances, lr="fast"))
    assert outcome.code != 0
    assert outcome.model == []
    assert "exited with code: 78" in outcome.output.replace("\n", " "), outcome.output
    reason = "hyperparameter lr: cannot read {} as float. give a float such as 0.002"
    # PyTorch's way of v2, which source_dir brings with it, puts texts into quotes.
    reason = reason.format("""'"fast"'""" if client is V2_SOURCE else "'fast'")
    assert {host[:6] for host, _ in outcome.lines(reason)} >= {"algo-1"}, outcome.output
    assert outcome.failure is not None, outcome.output
    assert (reason in outcome.failure) == client.trains, outcome.failure
    assert client.trains or "returned non-zero exit status 78" in outcome.failure


@pytest.mark.parametrize(("client", "code"), [(V3_COMMAND, 143), (V3_ENTRY, 137)], ids=["command", "entry_script"])
def test_a_stop_is_heard_where_train_is_pid_1(client: Client, code: int, local: LocalMode) -> None:
    process = local.start(client.version, client.program(epochs=500))
    host = local.running()
    host.wait_for("#metric ", DEADLINE)
    # The SDK's shell never hears of it, so the engine's patience is kept short there.
    host.stop(30 if client.trains else 2)
    assert host.wait() == code, host.logs()
    outcome = local.finished(process)
    assert f"exited with code: {code}" in outcome.output.replace("\n", " "), outcome.output
    assert bool(outcome.lines("moorage: exit code 143")) == client.trains, outcome.output
    saved = [line.split()[-1] for _, line in outcome.lines("asked to stop: saving at step ")]
    assert len(saved) == client.trains, outcome.output
    assert all(outcome.lines(f"saved step {step}:") for step in saved), outcome.output
    assert outcome.failure is None


def test_docker_run(tmp_path: Path, containers: Containers) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    text = snippet("docker run", "sh").replace("moorage:cpu", image_name())
    text = text.replace("docker run ", f"docker run --label {LABEL}=1 ")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-ec", text], cwd=tmp_path, env={**os.environ, "PATH": path}, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "of 2 on algo-1" in done.stdout
    assert (tmp_path / "job/model/model.safetensors").exists()


def test_every_snippet_of_the_page_is_run() -> None:
    titles = re.findall(r"^### (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert titles == [*(client.title for client in CLIENTS), "SDK v2, a model on this machine", "docker run"]
