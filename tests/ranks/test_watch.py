"""A job that hangs is noticed, the rank that holds it up is named, and training goes on; a long step is no hang."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ranks.chaos import DEADLINE, ChaosJob, dice, left_alone, rank_pids, reports
from support import HostProcess

HANG_MINUTES = 0.05
"""3 s without a step: a step of these programs takes milliseconds."""

PROGRAM = """
    import os, time
    from pathlib import Path
    import torch
    import moorage

    run = moorage.start(log_every=0, checkpoint_steps=10)
    hp = run.hyperparameters(steps=60, odd=-1, at=25, how="", evaluate=0.0, first=0.0, save=0.0, pause=0.01)

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 8 * hp.steps
        def __getitem__(self, index):
            return torch.full((8,), index / 1000)

    class Slow:
        def state_dict(self):
            time.sleep(hp.save)
            return {"n": 1}
        def load_state_dict(self, state):
            pass

    def spin_for_ever():
        while True:
            pass

    def trouble():
        mark = Path(os.environ["SAGEMAKER_BASE_DIR"]) / "was-here"
        if run.rank != hp.odd or run.steps_done != hp.at or mark.exists():
            return
        mark.touch()
        if hp.how == "spin":
            spin_for_ever()
        if hp.how == "leave":
            os._exit(0)
        if hp.how == "elsewhere":
            torch.distributed.barrier()

    model = run.parallelize(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)))
    run.track(model=model, optimizer=torch.optim.AdamW(model.parameters()), slow=Slow())
    loader = run.loader(Data(), batch_size=8)
    print("pid", run.rank, os.getpid(), "from step", run.steps_done, flush=True)
    for _ in run.epochs(1):
        for x in run.batches(loader):
            time.sleep(hp.first if not run.steps_done else 0.0)
            trouble()
            run.backward(model(x).square().mean())
            time.sleep(hp.pause)
            run.step()
        for _ in run.evaluating(run.loader(torch.utils.data.TensorDataset(torch.ones(4, 8)), batch_size=4)):
            time.sleep(hp.evaluate)
    run.finish()
"""


def of(hosts: list[HostProcess], kind: str) -> list[list[dict[str, object]]]:
    """Events of that kind in the ledger of each host."""
    return [[event for event in host.folder.ledger() if event["event"] == kind] for host in hosts]


@pytest.mark.full(5, short=1)
def test_a_stopped_rank_is_named_and_training_goes_on(tmp_path: Path, chaos_count: int) -> None:
    die = dice("sigstop")
    alone = left_alone(hosts=2, ranks=2)
    for number in range(chaos_count):
        job = ChaosJob(tmp_path / str(number), hosts=2)
        with job.start(hang_minutes=HANG_MINUTES) as hosts:
            assert job.await_step(die.randrange(20, job.steps - 40), hosts), reports(hosts)
            rank, pid = die.choice([*rank_pids(hosts).items()])
            os.kill(pid, signal.SIGSTOP)
            assert [host.ends(DEADLINE) for host in hosts] == [0, 0], reports(hosts)
        job.check_equal(alone)
        (told, *more), other = of(hosts, "hung")
        assert not more and other[0]["message"] == told["message"], reports(hosts)
        assert (told["host"], told["rank"]) == (hosts[rank // 2].host, rank)
        assert "it is stopped and cannot answer (state T: stopped by a signal such as SIGSTOP" in str(told["message"])
        for host in hosts:
            assert f"rank {rank} on {hosts[rank // 2].host} hangs: no step for " in host.stderr
        for other_rank in {0, 1, 2, 3} - {rank}:
            host = hosts[other_rank // 2]
            assert f"[{host.host}:{other_rank}] main thread, the innermost call first:" in host.stderr
        assert f"[{hosts[rank // 2].host}:{rank}] pid {pid}, " in hosts[rank // 2].stderr
