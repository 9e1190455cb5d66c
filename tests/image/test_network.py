"""The network between two hosts goes: for a while, which training rides through, or for good, which ends both hosts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from image.containers import Containers
from image.job import DEADLINE, ContainerJob, left_alone, metrics, reports, same
from ranks.chaos import dice, spread_of
from support import wait_until

CUT = 10.0
"""Seconds that the network is away."""

HEARTBEAT = 6.0
"""Seconds of silence after which a host counts as lost, where the cut is for good; else they are the usual ones."""


@pytest.mark.full(5, short=1)
def test_a_network_cut_for_10_s_costs_no_more_than_time(
    tmp_path: Path, containers: Containers, chaos_count: int
) -> None:
    die = dice("cut-10-s")
    alone = left_alone("ddp")
    silent = []
    for number in range(chaos_count):
        job = ContainerJob(containers, tmp_path / str(number), hosts=2)
        job.digits(moorage_strategy="ddp", moorage_log_every=5)
        hosts = job.start()
        hosts[0].wait_for(f"#metric step={die.randrange(5, 200, 5)} ", DEADLINE)
        cut = die.randrange(2)
        job.network.disconnect(hosts[cut].engine, force=True)
        began, shown = time.monotonic(), len(metrics(hosts[0])) + 1  # one may be on its way
        time.sleep(CUT)  # the fault itself
        job.network.connect(hosts[cut].engine, aliases=[job.names[cut]])
        assert len(metrics(hosts[0])) <= shown, "nothing was cut"
        wait_until(lambda: len(metrics(hosts[0])) > shown, timeout=DEADLINE, what="the next steps")  # noqa: B023
        silent.append(time.monotonic() - began)
        assert [host.wait(DEADLINE) for host in hosts] == [0, 0], reports(hosts)
        assert [len(job.events("start", name)) for name in job.names] == [1, 1], "no restart was needed"
        assert same(job.weights(), alone)
    print(
        f"{chaos_count} of {chaos_count} cuts of {CUT:.0f} s: no restart, bit-equal; {spread_of(silent)} without a step"
    )


@pytest.mark.full(5, short=1)
def test_a_network_cut_for_good_ends_both_hosts_and_the_job_goes_on_elsewhere(
    tmp_path: Path, containers: Containers, chaos_count: int
) -> None:
    die = dice("cut-for-good")
    alone = left_alone("ddp")
    seconds = []
    for number in range(chaos_count):
        job = ContainerJob(containers, tmp_path / str(number), hosts=2)
        job.settings["heartbeat_timeout"] = HEARTBEAT
        job.digits(moorage_strategy="ddp", moorage_log_every=5, moorage_checkpoint_steps=20)
        hosts = job.start()
        hosts[0].wait_for(f"#metric step={die.randrange(25, 200, 5)} ", DEADLINE)
        wait_until(lambda: job.events("save"), what="a checkpoint")  # noqa: B023
        began = time.monotonic()
        job.network.disconnect(hosts[die.randrange(2)].engine, force=True)
        assert [host.wait(HEARTBEAT + 20) for host in hosts] == [69, 69], reports(hosts)
        seconds.append(time.monotonic() - began)
        for name, other in (job.names, job.names[::-1]):
            assert f"lost the host {other}: " in (job.failure(name) or ""), reports(hosts)
        # On other machines, with what these have saved.
        hosts = job.finishes()
        (resume,) = job.events("resume")
        assert resume["step"] >= 20, reports(hosts)
        assert same(job.weights(), alone)
    print(f"{chaos_count} of {chaos_count} networks cut for good: both hosts ended, each naming the other, "
          f"{spread_of(seconds)} after the cut; started again, bit-equal")  # fmt: skip
