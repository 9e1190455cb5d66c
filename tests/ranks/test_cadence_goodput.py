"""A job that chooses its own checkpoints, and tells where its time went."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path

import pytest

from support import run_train, wait_until

PROGRAM = """
    import os, time
    import torch
    import moorage

    run = moorage.start(log_every=0)
    hp = run.hyperparameters(steps=200, evaluate=0.0)
    model = run.parallelize(torch.nn.Linear(8, 8))
    run.track(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    print("pid", run.rank, os.getpid(), "from step", run.steps_done, flush=True)
    for _ in run.epochs(1):
        while run.steps_done < hp.steps:
            run.backward(model(torch.ones(2, 8)).square().mean())
            time.sleep(0.01)
            run.step()
            if run.steps_done == 100:
                print("half", flush=True)
        for _ in run.evaluating(run.loader(torch.utils.data.TensorDataset(torch.ones(4, 8)), batch_size=2)):
            time.sleep(hp.evaluate)
    run.finish()
"""


def test_a_job_chooses_how_often_to_save_and_says_why(tmp_path: Path) -> None:
    given = {"steps": "400", "moorage_interruption_hours": "0.002"}
    with run_train(tmp_path, PROGRAM, ranks=2, hyperparameters=given) as (host,):
        assert host.ends(90) == 0, host.report()
    told, *_ = [event for event in host.folder.ledger() if event["event"] == "cadence"]
    assert f"moorage: {told['why']}" in host.stderr
    assert "an interruption is assumed every 0.002 h (setting interruption_hours)" in told["why"]
    saves = [event["time"] for event in host.folder.ledger() if event["event"] == "saving"][:-1]  # the last is the end
    assert len(saves) >= 3, host.report()
    assert min(later - sooner for sooner, later in itertools.pairwise(saves)) > 0.3


def test_a_short_job_saves_at_its_end_only(tmp_path: Path) -> None:
    with run_train(tmp_path, PROGRAM, ranks=2, hyperparameters={"steps": "50"}) as (host,):
        assert host.ends(90) == 0, host.report()
    assert [event["step"] for event in host.folder.ledger() if event["event"] == "saving"] == [50]


def test_the_time_of_a_job_is_accounted_for_over_hosts_and_attempts(tmp_path: Path) -> None:
    given = {"evaluate": "0.2", "moorage_checkpoint_steps": "80"}
    with run_train(tmp_path, PROGRAM, hosts=2, hyperparameters=given) as hosts:
        hosts[0].wait_for("half", timeout=60)
        folders = [host.folder.checkpoints / "step-00000080" / "manifest.json" for host in hosts]
        wait_until(lambda: all(path.exists() for path in folders), timeout=30, what="a checkpoint on both hosts")
        os.kill(int(hosts[1].lines("pid 1")[0].split()[3]), signal.SIGKILL)
        assert [host.ends(90) for host in hosts] == [0, 0], hosts[0].report()
    found = json.loads((hosts[0].folder.base / "output" / "data" / "goodput.json").read_text())
    parts = found["seconds"]
    assert sum(parts.values()) == pytest.approx(found["wall_seconds"], abs=0.01)
    events = hosts[0].folder.ledger()
    assert found["wall_seconds"] == pytest.approx(events[-1]["time"] - events[0]["time"], abs=0.1)
    assert [(one["first"], one["last"]) for one in found["attempts"]][1] == (80, 200)
    assert found["steps"] == 200 and found["attempts"][0]["last"] >= 100
    assert parts["useful"] > 200 * 0.01 and parts["replayed"] > 20 * 0.01
    assert 0.2 <= parts["evaluation"] < parts["useful"] + 5 and parts["start_up"] > 0.2
    assert parts["pause"] > 0 and parts["idle"] < 5
    assert f"moorage: goodput {found['goodput']:.1%} of " in hosts[0].stderr
    assert "moorage: goodput" not in hosts[1].stderr
    assert not (hosts[1].folder.base / "output" / "data" / "goodput.json").exists()
