"""A job that hangs is noticed, the rank that holds it up is named, training goes on; what only takes long is no hang.

Two hosts of two ranks each, as processes.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ranks.chaos import dice, is_gone, rank_pids, reports
from support import HostProcess, run_train, wait_until

HANG_MINUTES = 0.04
"""2.4 s without a step, of which one takes milliseconds here."""

LONG = 2.7
"""Seconds that something takes which is no step."""

PROGRAM = """
    import os, time
    from pathlib import Path
    import torch
    import moorage

    run = moorage.start(log_every=0, checkpoint_steps=10)
    hp = run.hyperparameters(steps=60, spins=-1, long=0.0, slow=0.0, pause=0.01)

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 8 * hp.steps
        def __getitem__(self, index):
            time.sleep(hp.slow if run.host_rank == 1 else 0.0)
            return torch.full((8,), index / 1000)

    class SlowToSave:
        def state_dict(self):
            time.sleep(hp.long if run.steps_done == 30 else 0.0)
            return {"n": 1}
        def load_state_dict(self, state):
            pass

    def spin_for_ever():
        while True:
            pass

    model = run.parallelize(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.1)))
    run.track(model=model, optimizer=torch.optim.AdamW(model.parameters()), slow=SlowToSave())
    mark = Path(os.environ["SAGEMAKER_BASE_DIR"]) / "spun"
    for _ in run.epochs(1):
        for x in run.batches(run.loader(Data(), batch_size=8)):
            if not run.steps_done:
                time.sleep(hp.long)
            if run.rank == hp.spins and run.steps_done == 15 and not mark.exists():
                mark.touch()
                spin_for_ever()
            run.backward(model(x).square().mean())
            time.sleep(hp.pause)
            run.step()
            if run.is_main:
                print("step", run.steps_done, flush=True)
        for _ in run.evaluating(run.loader(torch.utils.data.TensorDataset(torch.ones(4, 8)), batch_size=4)):
            time.sleep(hp.long)
    run.finish()
"""

run_job = functools.partial(run_train, program=PROGRAM, hosts=2, ranks=2)


def events(host: HostProcess, kind: str) -> list[dict[str, Any]]:
    return [event for event in host.folder.ledger() if event["event"] == kind]


def weights(host: HostProcess) -> dict[str, torch.Tensor]:
    return load_file(host.folder.model / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[HostProcess]:
    """A job that nothing happens to. All but its steps takes long, and one host is slow."""
    folder = tmp_path_factory.mktemp("alone")
    given = {"long": str(LONG), "slow": "0.02"}
    with run_job(folder, hyperparameters=given, hang_minutes=HANG_MINUTES, straggler_seconds=0.4) as hosts:
        assert [host.ends(90) for host in hosts] == [0, 0], reports(hosts)
    return hosts


def test_what_takes_long_is_no_hang(alone: list[HostProcess]) -> None:
    assert [events(host, "hung") for host in alone] == [[], []], reports(alone)
    assert [len(events(host, "start")) for host in alone] == [1, 1]
    assert "hang" not in alone[0].stderr


def test_a_slow_host_is_named_and_no_other(alone: list[HostProcess]) -> None:
    (told, *more), (other, *_) = (events(host, "straggler") for host in alone)
    assert not more, "said once in half an hour"
    assert (told["host"], told["part"], told["step"]) == (other["host"], "input", other["step"])
    assert told["host"] == "127.0.0.2" and told["rank"] in (2, 3)
    assert told["factor"] > 1.5 and told["own"] > 0.04 and 0.1 < told["share"] <= 1
    assert told["step"] <= 55
    line = f"127.0.0.2 is slow: rank {told['rank']} takes "
    assert all(line in host.stderr for host in alone)


@pytest.mark.full(5, short=1)
def test_a_rank_that_hangs_is_named_and_training_goes_on(
    tmp_path: Path, chaos_count: int, alone: list[HostProcess]
) -> None:
    """One rank in an endless loop; in the next attempt one that is stopped."""
    die = dice("hang")
    for number in range(chaos_count):
        spins, at = die.randrange(4), die.randrange(20, 40)
        given = {"spins": str(spins)}
        with run_job(tmp_path / str(number), hyperparameters=given, hang_minutes=HANG_MINUTES) as hosts:
            hosts[0].wait_for("attempt 1:", timeout=60)
            hosts[0].wait_for(f"step {at}\n", timeout=60)
            stopped, pid = die.choice([*rank_pids(hosts).items()])
            os.kill(pid, signal.SIGSTOP)
            assert [host.ends(90) for host in hosts] == [0, 0], reports(hosts)
        for host in hosts:
            first, second = events(host, "hung")
            assert (first["rank"], first["host"]) == (spins, hosts[spins // 2].host), reports(hosts)
            assert (second["rank"], second["host"]) == (stopped, hosts[stopped // 2].host), reports(hosts)
            assert "it is outside a collective while the others wait in one" in first["message"]
            assert "train.py:" in first["message"] and "in spin_for_ever" in first["message"]
            assert "it is stopped and cannot answer (state T: stopped by a signal" in second["message"]
            assert f"rank {stopped} on {second['host']} hangs: no step for " in host.stderr
        for rank in range(4):
            host = hosts[rank // 2]
            stacks = host.stderr.count(f"[{host.host}:{rank}] main thread, the innermost call first:")
            assert stacks == (1 if rank == stopped else 2), reports(hosts)
            assert host.stderr.count(f"[{host.host}:{rank}] pid ") == 2
        mine, theirs = weights(hosts[0]), weights(alone[0])
        assert all(mine[name].equal(theirs[name]) for name in theirs), reports(hosts)
    print(f"{chaos_count} of {chaos_count} loops and {chaos_count} of {chaos_count} stopped ranks: named, bit-equal")


@pytest.mark.full(5, short=1)
def test_a_frozen_host_is_named_by_the_other(tmp_path: Path, chaos_count: int, alone: list[HostProcess]) -> None:
    """Its ranks and its supervisor, all stopped at once. Started again, the job comes to the same end."""
    die = dice("freeze")
    seconds = []
    for number in range(chaos_count):
        with run_job(tmp_path / str(number), heartbeat_timeout=3) as hosts:
            hosts[0].wait_for(f"step {die.randrange(3, 30)}\n", timeout=60)
            frozen, other = die.sample(hosts, 2)
            pids = [*rank_pids([frozen]).values(), frozen.process.pid]
            others = [*rank_pids([other]).values()]
            began = time.monotonic()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                assert other.ends(3 + 10) == 69, reports(hosts)
                seconds.append(time.monotonic() - began)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            assert f"lost the host {frozen.host}: not heard of for " in (other.failure or "")
            assert frozen.ends(15) == 69, reports(hosts)
        for pid in others:
            wait_until(functools.partial(is_gone, pid), what=f"the end of rank {pid}")
        with run_job(tmp_path / str(number)) as hosts:
            assert [host.ends(90) for host in hosts] == [0, 0], reports(hosts)
        mine, theirs = weights(hosts[0]), weights(alone[0])
        assert all(mine[name].equal(theirs[name]) for name in theirs), reports(hosts)
    print(f"{chaos_count} of {chaos_count} frozen hosts named; the other ended after {max(seconds):.1f} s at most; "
          "started again, bit-equal")  # fmt: skip
