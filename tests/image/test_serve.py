"""`serve` as PID 1 of real containers: the rules of the platform, and the local endpoint of the SDK, with our model."""

from __future__ import annotations

import http.client
import json
import tarfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from image.clients.environments import require_compose
from image.clients.local import LocalMode
from image.clients.page import snippet
from image.containers import Container, Containers, image_name
from image.job import ContainerJob
from servers import handlers
from support import wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the digits, trained by the image's own `train`."""
    with Containers.opened() as containers:
        job = ContainerJob(containers, tmp_path_factory.mktemp("trained")).digits(epochs=2)
        job.finishes()
        yield job.folders["algo-1"].model


def ask(container: Container, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """(status, body); status 0 where nobody listens."""
    address = container.engine.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    connection = http.client.HTTPConnection(address, 8080, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def ready(container: Container) -> Container:
    def answers() -> bool:
        assert container.running, container.logs()
        return ask(container, "GET", "/ping")[0] == 200

    wait_until(answers, timeout=60, what="/ping")
    return container


def images(model: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    stored = np.load(model.parent / "input" / "data" / "train" / "digits.npz")
    return np.asarray(stored["images"][-100:], np.float32)[:, None] / 16


def test_a_model_of_train_is_served_read_only_without_code_and_stopped(model: Path, containers: Containers) -> None:
    server = containers.start(
        "serve", mounts={model: "/opt/ml/model:ro"}, read_only=True, tmpfs={"/tmp": ""}, user="65534",
        cap_drop=["ALL"], mem_limit="1g",
    )  # fmt: skip
    ready(server)
    body = json.dumps({"instances": images(model).tolist()}).encode()
    status, answer = ask(server, "POST", "/invocations", body, Content_Type="application/json")
    scores = np.array(json.loads(answer)["predictions"])
    labels = np.load(model.parent / "input" / "data" / "train" / "digits.npz")["labels"][-100:]
    assert status == 200 and (scores.argmax(1) == labels).mean() > 0.75
    assert ask(server, "GET", "/execution-parameters")[0] == 200
    assert server.execute("python3", "/opt/moorage/bin/healthcheck") == ""
    took = server.stop(grace=30)
    assert took < 5 and server.wait() == 0, server.logs()
    assert "train:build_model built with {}" in server.logs()


def test_a_model_process_that_dies_is_replaced_and_the_container_stays(tmp_path: Path, containers: Containers) -> None:
    code = "import os\ndef model_fn(d): return os.getpid()\ndef predict_fn(x, model): return model\n"
    server = ready(containers.start("serve", mounts={handlers(tmp_path, code): "/opt/ml/model:ro"}))
    before = ask(server, "POST", "/invocations", b"[1]")[1].decode()
    server.execute("sh", "-c", f"kill -9 {before}")
    server.wait_for("was killed by SIGKILL")
    ready(server)
    wait_until(lambda: ask(server, "POST", "/invocations", b"[1]")[1].decode() not in (before, ""), what="another")


def test_a_model_that_cannot_be_loaded_ends_the_container(tmp_path: Path, containers: Containers) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights of somebody")
    server = containers.start("serve", mounts={tmp_path: "/opt/ml/model:ro"})
    assert server.wait() == 72
    assert "can be served by itself. it holds model.bin" in server.logs()


def test_the_sdk_deploys_it_on_this_machine(model: Path, tmp_path: Path, containers: Containers) -> None:
    require_compose()
    with LocalMode.opened(tmp_path, containers) as local:
        text = snippet("SDK v2, a model on this machine").replace('"moorage:cpu"', f'"{image_name()}"')
        with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
            tar.add(model, ".")
        np.save(tmp_path / "images.npy", images(model))
        started = time.monotonic()
        outcome = local.run("v2", textwrap.dedent(text))
        print(f"{time.monotonic() - started:.1f} s")
        assert outcome.code == 0, outcome.output
        assert "predictions: 100 x 10" in outcome.output, outcome.output
