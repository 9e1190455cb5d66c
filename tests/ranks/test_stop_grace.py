"""A stop whose save does not fit into the grace: the checkpoint before it is kept, and the job goes on from there."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import HostProcess, JobFolder, run_train, wait_until

PROGRAM = """
    import os, time
    import torch
    import moorage

    run = moorage.start()
    hp = run.hyperparameters(steps=100000, fsync=0.0, save_at=0)
    model = run.parallelize(torch.nn.Linear(8, 8))
    run.track(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    quick = os.fsync

    def slow(descriptor):  # a disk that takes its time to say that the bytes are there
        time.sleep(hp.fsync)
        quick(descriptor)

    os.fsync = slow
    print("from step", run.steps_done)
    for _ in run.epochs(1):
        while run.steps_done < hp.steps:
            run.backward(model(torch.ones(2, 8)).square().mean())
            time.sleep(0.01)
            run.step()
            if run.steps_done == hp.save_at:
                run.save()
    run.finish()
"""


STEPS_ONLY = {"moorage_checkpoint_minutes": "0"}


def committed(folder: JobFolder) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folder.checkpoints.glob("*/manifest.json"))


def lost(host: HostProcess) -> tuple[int, str]:
    """The step that was not saved, and why."""
    found = re.search(r"step (\d+) is not saved: (.*)", host.stderr)
    assert found, host.report()
    return int(found[1]), found[2]


def goes_on(base: Path, at: int) -> None:
    """Started again, from that step, it trains the weights of a job that was left alone."""
    weights = trained(base, at=at, steps=at + 5)
    alone = left_alone(at + 5)
    assert weights.keys() == alone.keys()
    assert all(tensor.equal(alone[name]) for name, tensor in weights.items())


def trained(base: Path, *, at: int, steps: int) -> dict[str, torch.Tensor]:
    """Its weights, when it went on from step `at` to its end."""
    with run_train(base, PROGRAM, ranks=2, hyperparameters={"steps": str(steps)}) as (host,):
        assert host.ends(60) == 0, host.report()
    assert f"from step {at}" in host.stdout
    return load_file(host.folder.model / "model.safetensors")


@functools.cache
def left_alone(steps: int) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        return trained(Path(folder), at=0, steps=steps)


@pytest.mark.full(3, short=1)
def test_a_save_slower_than_the_grace_is_not_begun(tmp_path: Path, chaos_count: int) -> None:
    for number in range(chaos_count):
        _stop_before_a_slow_save(tmp_path / str(number))
    print(
        f"{chaos_count} of {chaos_count} saves slower than the grace: the one before kept, with the reason, bit-equal"
    )


def _stop_before_a_slow_save(base: Path) -> None:
    given = {"fsync": "1.0", "save_at": "20"}
    with run_train(base, PROGRAM, ranks=2, hyperparameters={**STEPS_ONLY, **given}, grace=9) as (host,):
        host.wait_for("saved step 20", timeout=60)
        host.signal()
        assert host.ends() == 143, host.report()
    step, why = lost(host)
    assert committed(host.folder) == [20]
    assert re.match(r"a save takes about [\d.]+ s, and [\d.]+ s of the grace are left; ", why)
    assert why.endswith(f"the checkpoint of step 20 is kept, {step - 20} steps are lost")
    assert host.failure is None
    (stopped,) = [event for event in host.folder.ledger() if event["event"] == "stopped"]
    assert (stopped["step"], stopped["kept"]) == (step, 20)
    assert stopped["time"] - next(e["time"] for e in host.folder.ledger() if e["event"] == "stop") < 5
    goes_on(base, 20)


def test_a_save_that_turns_out_slower_than_the_grace_is_left_behind(tmp_path: Path) -> None:
    given = {"fsync": "9"}
    with run_train(tmp_path, PROGRAM, ranks=2, hyperparameters={**STEPS_ONLY, **given}, grace=6) as (host,):
        host.wait_for("from step 0", times=2, timeout=60)
        host.signal()
        assert host.ends() == 143, host.report()
    _, why = lost(host)
    assert why == "its save did not end before the grace did; there is no checkpoint: all of it is lost"
    assert host.failure is None
    assert committed(host.folder) == []
    trained(tmp_path, at=0, steps=5)


def test_a_save_under_way_is_the_one_that_is_kept(tmp_path: Path) -> None:
    given = {"fsync": "1.1", "save_at": "20"}
    with run_train(tmp_path, PROGRAM, ranks=2, hyperparameters={**STEPS_ONLY, **given}, grace=15) as (host,):
        host.wait_for("from step 0", times=2, timeout=60)
        wait_until(lambda: list(host.folder.checkpoints.glob("step-*")), timeout=60, what="a save under way")
        host.signal()
        assert host.ends() == 143, host.report()
    step, why = lost(host)
    assert committed(host.folder) == [20] and step > 20
    assert f"the checkpoint of step 20 is kept, {step - 20} steps are lost" in why
    goes_on(tmp_path, 20)


def test_a_rank_that_left_and_does_not_end_is_no_failure(tmp_path: Path) -> None:
    """What it was asked for is done: the state is saved. Its Python takes longer to end than the grace."""
    slow_to_end = PROGRAM.replace("run.finish()", "").replace(
        "run = moorage.start()", "import atexit; atexit.register(time.sleep, 60); run = moorage.start()"
    )
    with run_train(tmp_path, slow_to_end, ranks=2, hyperparameters=STEPS_ONLY, grace=5) as (host,):
        host.wait_for("from step 0", times=2, timeout=60)
        host.signal()
        assert host.ends(20) == 143, host.report()
    assert "stopped, but not ended when the grace was over: rank 0, 1" in host.stderr
    assert host.failure is None
    [step] = committed(host.folder)
    goes_on(tmp_path, step)
