"""Whole jobs through `train`: the examples, scripts written for other libraries, and folders that cannot be used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support import ROOT, JobFolder, digits, free_port, job_settings, run_train, starting

EXAMPLES = ROOT / "examples"


def test_a_script_written_for_torchrun_runs_unchanged(tmp_path: Path) -> None:
    folder = digits(JobFolder(tmp_path), sagemaker_program="train.py")
    folder.hyperparameters(
        sagemaker_program="train.py", sagemaker_submit_directory=str(EXAMPLES / "script_mode"), epochs="2"
    )
    with starting() as start:
        host = start(folder, env=job_settings(ranks_per_host=2))
        assert host.ends(60) == 0, host.report()
    losses = [float(line.split()[-1]) for line in host.lines("epoch")]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert torch.load(folder.model / "model.pt", weights_only=True)["0.weight"].shape == (64, 64)


@pytest.mark.parametrize("launcher", ["python", "torchrun"])
def test_the_example_runs_without_train(tmp_path: Path, launcher: str) -> None:
    folder = digits(JobFolder(tmp_path))
    program = str(EXAMPLES / "digits" / "train.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command = [sys.executable] if launcher == "python" else torchrun
    env = {**os.environ, **folder.env, "MOORAGE_CHECKPOINT_STEPS": "20"}
    done = subprocess.run([*command, program], env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert "val_accuracy=" in done.stdout
    assert (folder.model / "model.safetensors").exists()
    assert (folder.checkpoints / "step-00000044" / "manifest.json").exists()


def test_hyperparameters_on_the_command_line_of_a_program_run_by_hand(tmp_path: Path) -> None:
    folder = digits(JobFolder(tmp_path), moorage_log_every="1")
    command = [sys.executable, str(EXAMPLES / "digits" / "train.py"), "--epochs", "1", "--batch_size=700"]
    done = subprocess.run(
        command, env={**os.environ, **folder.env}, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "#metric step=2 " in done.stdout
    assert "#metric step=3 " not in done.stdout


ACCELERATE = """
    import torch
    from accelerate import Accelerator
    accelerator = Accelerator()
    model = accelerator.prepare(torch.nn.Linear(4, 2))
    with accelerator.autocast():
        out = model(torch.randn(3, 4))
    accelerator.backward(out.float().sum())
    kind = (accelerator.num_processes, accelerator.mixed_precision, type(model).__name__)
    print("accelerate", *kind, flush=True)
    model, out = accelerator.free_memory(model, out)  # else gloo's threads can abort the process as Python ends
    accelerator.end_training()
"""


def test_an_unmodified_accelerate_script_gets_strategy_and_precision(tmp_path: Path) -> None:
    with run_train(tmp_path, ACCELERATE, ranks=2, strategy="ddp", precision="bf16") as (host,):
        assert host.ends(60) == 0, host.report()
    said = {line.partition("accelerate ")[2] for line in host.lines("accelerate")}
    assert said == {"2 bf16 DistributedDataParallel"}


WORKERS = """
    import os, time, torch, moorage
    class Data(torch.utils.data.Dataset):
        def __len__(self): return 4000
        def __getitem__(self, index): return torch.randn(4)
    run = moorage.start()
    loader = run.loader(Data(), 8, num_workers=2)
    model = run.parallelize(torch.nn.Linear(4, 2))
    run.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
    print("group", os.getpgid(0), flush=True)
    for _ in run.epochs(50):
        for x in run.batches(loader):
            loss = model(x).square().mean()
            run.backward(loss)
            run.step(loss=loss)
"""


def test_data_workers_outlive_a_stop_that_reaches_the_whole_process_group(tmp_path: Path) -> None:
    """As torchrun and some platforms send it: a worker that ended first would fail its rank before it has saved."""
    with run_train(tmp_path, WORKERS, ranks=2, log_every=5) as (host,):
        host.wait_for("#metric step=10 ", timeout=60)
        for line in host.lines("group"):
            os.killpg(int(line.split()[-1]), signal.SIGTERM)
        assert host.ends(60) == 143, host.report()
    assert host.failure is None
    assert list(host.folder.checkpoints.glob("step-*/manifest.json"))


BIG = """
    import torch, moorage
    run = moorage.start(strategy="ddp")
    model = run.parallelize(torch.nn.Linear(1000, 1000))
    run.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
    data = torch.utils.data.TensorDataset(torch.randn(64, 1000))
    for _ in run.epochs(3):
        for (x,) in run.batches(run.loader(data, 16)):
            run.backward(model(x).square().mean())
            run.step()
    print("trained to the end", flush=True)
    run.finish()
"""


@pytest.mark.parametrize(("blocked", "code"), [("checkpoints", 74), ("model", 73)])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, blocked: str, code: int) -> None:
    folder = JobFolder(tmp_path / "algo-1")
    folder.file(blocked, "a file where the folder should be")
    with run_train(tmp_path, BIG, ranks=2, max_restarts=0) as (host,):
        ended = host.ends(60)
    assert ended == code, host.report()
    assert host.failure is not None
    assert str(folder.base / blocked) in host.failure
    assert "EEXIST" in host.failure or "ENOTDIR" in host.failure
    assert "moorage/training" not in host.failure, "our own frames say nothing to the user"


def test_an_argument_is_never_read_by_a_shell(tmp_path: Path) -> None:
    hostile = '\'; touch $(echo pwned) "x" `id` && \n echo --done'
    program = """
        import sys, json
        print("argv", json.dumps(sys.argv[1:]), flush=True)
    """
    with run_train(tmp_path, program, hyperparameters={"note": hostile}) as (host,):
        assert host.ends(30) == 0, host.report()
    assert json.loads(host.lines("argv")[0].removeprefix("argv ")) == ["--note", hostile]
    assert not list(tmp_path.rglob("pwned"))


def test_progress_bars_and_metric_lines_stay_whole(tmp_path: Path) -> None:
    program = """
        import sys, time
        for n in range(200):
            sys.stderr.write(f"\\r{n}%|####")
            if n % 50 == 0:
                print(f"#metric step={n} epoch=0 loss=0.5")
        sys.stderr.write("\\n")
    """
    with run_train(tmp_path, program, ranks=2) as (host,):
        assert host.ends(30) == 0, host.report()
    assert [line for line in host.lines() if line.startswith("#metric")] == [
        f"#metric step={n} epoch=0 loss=0.5" for n in (0, 50, 100, 150)
    ]
    bars = [line for line in host.stderr.splitlines() if "%|" in line]
    assert 2 <= len(bars) < 100, "neither one endless line nor every state"
    assert sum(line.endswith("199%|####") for line in bars) == 2, "the last state, of both ranks"
