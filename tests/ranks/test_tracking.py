"""A job's run in a real MLflow server: one over its interruptions, its curves whole, whatever became of the server."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mlflow_server import MlflowServer
from moorage.training.tracking.server import Server, Target
from moorage.training.tracking.spool import Point, Spool
from support import HostProcess, free_port, run_train

PROGRAM = """
import time, torch, moorage

run = moorage.start()
hp = run.hyperparameters(lr=0.1, epochs=5, api_key="")
loader = run.loader(torch.utils.data.TensorDataset(torch.randn(80, 4), torch.randn(80, 1)), 4)
model = run.parallelize(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=hp.lr)
run.track(model=model, optimizer=optimizer)
for epoch in run.epochs(hp.epochs):
    for x, y in run.batches(loader):
        time.sleep(0.02)
        while run.steps_done in (30, 60) and (run.model_folder.parent / "hold").exists():
            time.sleep(0.05)
        loss = torch.nn.functional.mse_loss(model(x), y)
        run.backward(loss)
        run.step(loss=loss)
    run.report(score=1 / (1 + epoch))
run.finish()
"""
STEPS, EPOCHS = 100, 5
ARN = "arn:aws:sagemaker:eu-west-1:123456789012:training-job/tracked"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    folder = tmp_path / "mlflow"
    folder.mkdir()
    server = MlflowServer(folder).start()
    try:
        yield server
    finally:
        server.kill()


def attempt(base: Path, url: str, *, first: bool = False, ranks: int = 1) -> AbstractContextManager[list[HostProcess]]:
    env = {
        "MLFLOW_TRACKING_URI": url,
        "TRAINING_JOB_NAME": "tracked",
        "TRAINING_JOB_ARN": ARN,
        "MOORAGE_LINEAGE": json.dumps({"image": "sha256:1234", "data.train": "s3://bucket/digits"}),
    }
    given = {"program": PROGRAM, "hyperparameters": {"lr": "0.05", "api_key": "hidden-from-all"}} if first else {}
    return run_train(base, ranks=ranks, env=env, log_every=1, checkpoint_steps=10, **given)  # type: ignore[arg-type]


def test_one_run_over_three_interruptions_and_a_server_that_dies(tmp_path: Path, server: MlflowServer) -> None:
    base = tmp_path / "job"
    hold = base / "algo-1" / "hold"
    hold.parent.mkdir(parents=True)
    hold.touch()
    with attempt(base, server.url, first=True) as (host,):
        host.wait_for("recording in MLflow", timeout=60)
        host.signal()
        hold.unlink()
        assert host.ends() == 143
    hold.touch()
    with attempt(base, server.url) as (host,):
        host.wait_for("recording in MLflow", timeout=60)
        server.kill()
        host.wait_for("does not take what is tracked", timeout=60)
        host.signal()
        hold.unlink()
        assert host.ends() == 143
        assert "has not got everything after 5 s" in host.stderr
    hold.touch()
    with attempt(base, server.url) as (host,):
        host.wait_for("does not take what is tracked", timeout=60)
        host.process.kill()  # the whole job at once, with points that nobody has sent
        host.ends()
    with attempt(base, server.url) as (host,):
        host.wait_for("does not take what is tracked", timeout=60)
        server.start()
        host.wait_for("recording in MLflow", timeout=60)
        hold.unlink()
        assert host.ends(60) == 0, host.report()
        assert "hidden-from-all" not in host.stdout + host.stderr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = server.client()
        (run,) = client.search_runs([client.get_experiment_by_name("moorage").experiment_id])
        curves = {
            name: [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        files = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert curves["train_loss"] == list(range(1, STEPS + 1))
    assert curves["score"] == [STEPS // EPOCHS * (epoch + 1) for epoch in range(EPOCHS)]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tracked"
    assert run.data.params == {"lr": "0.05", "epochs": "5", "api_key": "********"}
    tags = run.data.tags
    assert tags["moorage.image"] == "sha256:1234"
    assert tags["moorage.data.train"] == "s3://bucket/digits"
    assert tags["moorage.world_size"] == "1"
    assert tags["moorage.code"].startswith("train.py xxh3:")
    assert len([name for name in tags if name.startswith("moorage.resumed.step-")]) in (2, 3)
    assert "model.json" in files and "model.safetensors" in files


FAILS = PROGRAM.replace(
    "run.step(loss=loss)",
    """run.step(loss=loss)
        if run.steps_done == 15:
            raise RuntimeError("token=hidden-from-all is wrong")""",
)


def test_a_job_that_fails_is_failed_there_too_with_its_last_steps(tmp_path: Path, server: MlflowServer) -> None:
    env = {
        "MLFLOW_TRACKING_URI": server.url, "TRAINING_JOB_NAME": "fails", "TRAINING_JOB_ARN": ARN,
        "MOORAGE_MAX_RESTARTS": "0",
    }  # fmt: skip
    hidden = {"api_key": "hidden-from-all"}
    with run_train(tmp_path / "job", program=FAILS, ranks=1, env=env, log_every=1, hyperparameters=hidden) as (host,):
        assert host.ends(60) == 1, host.report()
    client = server.client()
    (run,) = client.search_runs([client.get_experiment_by_name("moorage").experiment_id])
    assert run.info.status == "FAILED"
    assert run.info.end_time
    assert [one.step for one in client.get_metric_history(run.info.run_id, "train_loss")] == list(range(1, 16))
    assert run.data.params == {"lr": "0.1", "epochs": "5", "api_key": "********"}
    assert run.data.tags["moorage.code"].startswith("train.py xxh3:")
    assert "RuntimeError: token=******** is wrong" in run.data.tags["moorage.failure"]
    with run_train(tmp_path / "job", program=PROGRAM, ranks=1, env=env, log_every=1) as (host,):
        assert host.ends(60) == 0, host.report()
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert "moorage.failure" not in run.data.tags
    steps = [one.step for one in client.get_metric_history(run.info.run_id, "train_loss")]
    assert steps == list(range(1, STEPS + 1))


def test_a_job_that_fails_while_mlflow_is_away_ends_all_the_same(tmp_path: Path) -> None:
    env = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}", "TRAINING_JOB_NAME": "fails",
        "TRAINING_JOB_ARN": ARN, "MOORAGE_MAX_RESTARTS": "0",
    }  # fmt: skip
    with run_train(tmp_path / "job", program=FAILS, ranks=1, env=env, log_every=1) as (host,):
        assert host.ends(60) == 1, host.report()
        assert "has not got everything after 10 s" in host.stderr
        assert (tmp_path / "job" / "algo-1" / "output" / "failure").exists()


def test_a_folder_is_a_database_in_it(tmp_path: Path) -> None:
    assert Target.of({"MLFLOW_TRACKING_URI": " "}) is None
    target = Target.of({"MLFLOW_TRACKING_URI": str(tmp_path / "runs")})
    assert target is not None
    note = tmp_path / "note.txt"
    note.write_text("said")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = Server.open(target, identity="mine", name="job", environ={})
        server.send([Point(name="loss", value=1.0, step=step, time=1) for step in (1, 2, 2)])
        server.keep([note])
        server.end("FINISHED")
        again = Server.open(target, identity="mine", name="job", environ={})
    assert (again.run_id, again.sent) == (server.run_id, {"loss": 2})
    assert (tmp_path / "runs" / "mlflow.db").exists()
    assert list((tmp_path / "runs" / "artifacts").rglob("note.txt"))


def test_what_is_not_of_this_job_or_torn_is_left_alone(tmp_path: Path) -> None:
    other = Spool(tmp_path, "another")
    other.add({"loss": 1.0}, 1)
    other.close()
    mine = Spool(tmp_path, "mine")
    mine.add({"loss": 2.0, "score": float("nan")}, 2)
    mine.close()
    with (tmp_path / "tracking" / "00002.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "time": 5, "metr')
    again = Spool(tmp_path, "mine")
    assert [(point.name, point.step) for point in again.take()] == [("loss", 2), ("score", 2)]
    again.close()
    assert Spool(tmp_path, "").identity == "mine"
