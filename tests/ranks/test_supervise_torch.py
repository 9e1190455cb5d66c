"""Programs written for torchrun, on gloo: error files, meeting again after a restart, one cause among effects."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from support import HostProcess, run_train

REDUCE = """
    import os, time
    import torch, torch.distributed as dist

    dist.init_process_group("gloo")
    rank, attempt = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"]
    for step in range({steps}):
        one = torch.ones(1)
        dist.all_reduce(one)
        assert one.item() == 4
        if step == 1:
            print("pid", attempt, rank, os.getpid(), flush=True)
        {body}
        time.sleep(0.02)
    dist.destroy_process_group()
"""


def reports(hosts: list[HostProcess]) -> str:
    return "\n".join(host.report() for host in hosts)


def test_an_error_that_torch_recorded(tmp_path: Path) -> None:
    program = """
        from torch.distributed.elastic.multiprocessing.errors import record

        @record
        def main():
            raise LookupError("no such shard")

        try:
            main()
        except LookupError:
            raise SystemExit(9)  # nothing of it on stderr
    """
    with run_train(tmp_path, program) as (host,):
        assert host.ends() == 9, host.report()
    assert host.failure is not None
    assert host.failure.startswith("rank 0 on algo-1 failed with exit code 9: LookupError: no such shard")
    assert "train.py:6 in main: raise LookupError" in host.failure


def test_ranks_of_two_hosts_meet_again_after_one_was_killed(tmp_path: Path) -> None:
    program = REDUCE.format(steps=100_000, body="if attempt == '1' and step == 5: break")
    with run_train(tmp_path, program, hosts=2, ranks=2, max_restarts=1) as hosts:
        for host in hosts:
            host.wait_for("pid 0", times=2, timeout=60)
        (line,) = [line for line in hosts[1].lines("pid 0") if line.split()[-2] == "3"]
        os.kill(int(line.split()[-1]), signal.SIGKILL)
        assert [host.ends(60) for host in hosts] == [0, 0], reports(hosts)
    assert {line.split()[-2] for host in hosts for line in host.lines("pid 1")} == {"0", "1", "2", "3"}
    assert [host.failure for host in hosts] == [None, None]


def test_the_cause_is_told_from_the_effects(tmp_path: Path) -> None:
    program = REDUCE.format(steps=100_000, body="if rank == 2 and step == 3: raise ValueError('label 11')")
    with run_train(tmp_path, program, hosts=2, ranks=2) as hosts:
        assert [host.ends(60) for host in hosts] == [1, 1], reports(hosts)
    assert hosts[0].failure == hosts[1].failure
    assert (hosts[0].failure or "").startswith("rank 2 on 127.0.0.2 failed with exit code 1: ValueError: label 11")
