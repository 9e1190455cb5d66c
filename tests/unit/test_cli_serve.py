"""`moorage serve` and `moorage predict` against each other, and predict against an endpoint that says no."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from moorage.cli.app import main
from servers import Server, handlers
from support import free_port

CODE = "def model_fn(d): return 2\ndef predict_fn(x, model): return x * model\n"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = handlers(tmp_path_factory.mktemp("model"), CODE)
    path = tmp_path_factory.mktemp("packed") / "model.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("code/inference.py",):
            tar.add(folder / name, name)
    return path


def test_a_packed_model_is_served_asked_and_stopped(packed: Path, tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moorage.cli", "serve", "--local", str(packed), "--port", str(port),
         "-e", "MOORAGE_METRICS_PORT=0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ},
    )  # fmt: skip
    server = Server(process=process, port=port)
    url = f"http://127.0.0.1:{port}"
    try:
        # It is asked before it listens, and waits.
        assert main(["predict", "[1.0]", "--url", url, "--wait", "60"]) == 0
        array, answer = tmp_path / "body.npy", tmp_path / "answer.npy"
        np.save(array, np.ones((2, 3), np.float32))
        assert main(["predict", f"@{array}", "--url", url, "--accept", "application/x-npy", "-o", str(answer)]) == 0
        assert np.load(answer).tolist() == [[2.0] * 3] * 2
        assert main(["predict", "nonsense", "--url", url]) == 1
        process.send_signal(signal.SIGTERM)
        assert server.ends() == 0
    finally:
        process.kill()
    assert "asked to stop" in server.log


def test_what_is_printed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[1]")))
    assert main(["predict", "-", "--url", f"http://127.0.0.1:{free_port()}"]) == 77
    assert "does not answer" in capfd.readouterr().err
    assert main(["predict", "@/nowhere", "--url", "ftp://x"]) == 78
    assert "the body /nowhere cannot be read" in capfd.readouterr().err
    assert main(["predict", "[1]", "--url", "ftp://x"]) == 78
    assert main(["serve", "/nowhere"]) == 78
    assert "there is no model /nowhere" in capfd.readouterr().err
