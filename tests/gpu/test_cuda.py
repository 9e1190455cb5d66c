"""What only a GPU can show: `train` and `serve` on CUDA, on one device. `make test-gpu`, on a machine that has one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servers import serving
from support import ROOT, HostProcess, JobFolder, digits, run_train

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

EXACT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
DIGITS = (ROOT / "examples" / "digits" / "train.py").read_text()
DETERMINISTIC = DIGITS.replace(
    "    run = moorage.start()", "    torch.use_deterministic_algorithms(True)\n    run = moorage.start()"
)

SAVES = """
import json, time, torch, moorage
run = moorage.start()
layers = [torch.nn.Linear(2048, 2048) for _ in range(20)]
model = run.parallelize(torch.nn.Sequential(*layers))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
run.track(model=model, optimizer=optimizer)
data = torch.utils.data.TensorDataset(torch.randn(64 * 60, 2048))
loader = run.loader(data, 64)
for _ in run.epochs(1):
    for (x,) in run.batches(loader):
        loss = model(x).square().mean()
        run.backward(loss)
        run.step(loss=loss)
        time.sleep(0.2)  # a save is written between two
state = [p for p in model.parameters()] + [v for s in optimizer.state.values() for v in s.values() if v.is_cuda]
size = sum(t.numel() * t.element_size() for t in state)
into = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in state]
def copied():
    torch.cuda.synchronize(); started = time.perf_counter()
    for t, to in zip(state, into): to.copy_(t, non_blocking=True)
    torch.cuda.synchronize(); return time.perf_counter() - started
copied(); pinned = min(copied() for _ in range(3))
started = time.perf_counter()
for t in state: t.cpu()
torch.cuda.synchronize(); pageable = time.perf_counter() - started
print("COPIES", json.dumps({"bytes": size, "pinned": pinned, "pageable": pageable}), flush=True)
run.finish()
"""


def trained(
    base: Path, program: str = DIGITS, *, env: dict[str, str] | None = None, epochs: int = 3, **settings: Any
) -> HostProcess:
    digits(JobFolder(base / "algo-1"), epochs=str(epochs))
    with run_train(base, program, env=env, **settings) as (host,):
        assert host.ends(120) == 0, host.report()
    return host


def weights(base: Path) -> str:
    return hashlib.sha256((base / "algo-1" / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bf16"}, {"strategy": "fsdp"}, {"strategy": "ddp"}, {"compile": "true"}]
)
def test_digits_train_on_the_gpu(tmp_path: Path, settings: dict[str, Any]) -> None:
    host = trained(tmp_path, **settings)
    facts = json.loads((host.folder.model / "model.json").read_text())
    print(settings, facts["metrics"], facts["strategy"])
    assert facts["metrics"]["val_accuracy"] > 0.85
    assert torch.cuda.get_device_name() in host.stderr


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"strategy": "fsdp"}])
def test_stopped_and_resumed_it_is_bit_equal(tmp_path: Path, settings: dict[str, Any]) -> None:
    trained(tmp_path / "alone", DETERMINISTIC, env=EXACT, epochs=20, **settings)
    base = tmp_path / "stopped"
    digits(JobFolder(base / "algo-1"), epochs="20", moorage_log_every="10")
    with run_train(base, DETERMINISTIC, env=EXACT, **settings) as (host,):
        host.wait_for("#metric step=150 ", timeout=60)
        host.signal()
        assert host.ends(60) == 143, host.report()
        print([line for line in host.stderr.splitlines() if "saved step" in line])
    with run_train(base, env=EXACT, **settings) as (host,):
        assert host.ends(60) == 0, host.report()
        assert "resumed" in host.stderr
    assert weights(base) == weights(tmp_path / "alone")


def test_a_killed_rank_is_restarted_bit_equal(tmp_path: Path) -> None:
    trained(tmp_path / "alone", DETERMINISTIC, env=EXACT, epochs=20)
    base = tmp_path / "killed"
    digits(JobFolder(base / "algo-1"), epochs="20", moorage_log_every="10")
    with run_train(base, DETERMINISTIC, env=EXACT, checkpoint_steps=40) as (host,):
        host.wait_for("#metric step=150 ", timeout=60)
        os.kill(_child(host), signal.SIGKILL)
        assert host.ends(90) == 0, host.report()
    assert weights(base) == weights(tmp_path / "alone")


def _child(host: HostProcess) -> int:
    path = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children")
    return int(path.read_text().split()[-1])


def test_a_save_of_a_gigabyte_pauses_training_for_less_than_a_copy_of_it(tmp_path: Path) -> None:
    digits(JobFolder(tmp_path / "algo-1"))
    with run_train(tmp_path, SAVES, checkpoint_steps=10) as (host,):
        assert host.ends(150) == 0, host.report()
    copies = json.loads(next(line for line in host.stdout.splitlines() if "COPIES" in line).partition("COPIES ")[2])
    saves = [event for event in host.folder.ledger() if event["event"] == "save"]
    pauses = [save["pause"] for save in saves]
    print(f"{copies['bytes'] / 1e9:.2f} GB; to pinned memory {copies['pinned']:.4f} s, else {copies['pageable']:.3f} s")
    print("pauses", [round(pause, 4) for pause in pauses], "written in", [round(save["seconds"], 2) for save in saves])
    assert sorted(pauses[1:])[len(pauses) // 2] < copies["pinned"]  # the first makes the buffers


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16", "max_batch_size": "8"}, {"compile": "true"}])
def test_it_is_served_from_the_gpu(tmp_path: Path, settings: dict[str, Any]) -> None:
    host = trained(tmp_path)
    channel = np.load(host.folder.base / "input" / "data" / "train" / "digits.npz")
    images = channel["images"][-200:].astype(np.float32)[:, None] / 16
    with serving(host.folder.model, **settings) as server:
        server.wait_for("on cuda:0")
        body = json.dumps({"instances": images.tolist()})
        scores = np.array(server.ask(body=body, content_type="application/json").json()["predictions"])
        print([line for line in server.log.splitlines() if "is ready" in line])
        server.stop()
        assert server.ends() == 0
    assert (scores.argmax(1) == channel["labels"][-200:]).mean() > 0.85
