"""One and two hosts, with one and two ranks each: they train alike, stop together, and go on after one was killed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import FULL
from image.containers import Containers
from image.job import DEADLINE, EPOCHS, ContainerJob, left_alone, metrics, reports, same
from support import wait_until

STEPS_PER_EPOCH = 44


@pytest.mark.parametrize(
    ("hosts", "ranks", "strategy"),
    [
        (1, 1, "single"),
        (1, 2, "fsdp"),
        (2, 1, "fsdp"),
        (2, 2, "ddp"),
        (2, 2, "fsdp"),
        *(((1, 2, "ddp"), (2, 1, "ddp")) if FULL else ()),
    ],
)
def test_digits_on(tmp_path: Path, containers: Containers, hosts: int, ranks: int, strategy: str) -> None:
    """Hosts are unsorted in resourceconfig.json in all of them."""
    job = ContainerJob(containers, tmp_path, hosts=hosts, ranks=ranks)
    started = job.digits(epochs=3, moorage_strategy=strategy).finishes()
    first, *others = started
    assert f"strategy {strategy}" in first.logs()
    lines = metrics(first)
    steps = [int(line.split()[1].removeprefix("step=")) for line in lines]
    assert set(steps) == {*range(10, 3 * STEPS_PER_EPOCH, 10), *(STEPS_PER_EPOCH * epoch for epoch in (1, 2, 3))}
    accuracy = float(lines[-1].rpartition("val_accuracy=")[2])
    assert accuracy > 0.8, lines
    assert [metrics(host) for host in others] == [[]] * len(others), "global rank 0 alone says them"
    assert [job.failure(name) for name in job.names] == [None] * hosts
    assert load_file(job.folders["algo-1"].model / "model.safetensors")
    assert not list(job.folders["algo-2"].model.iterdir()) if others else True


def test_sigterm_to_one_of_two_hosts_stops_both_at_one_step(tmp_path: Path, containers: Containers) -> None:
    """And where the ranks are spread over two hosts the model is that of one host, bit for bit."""
    job = ContainerJob(containers, tmp_path, hosts=2).digits(moorage_strategy="ddp")
    hosts = job.start()
    hosts[0].wait_for("#metric step=10 ", DEADLINE)
    print(f"docker stop of one host of two, with a save: {hosts[1].stop(30):.1f} s")
    assert [host.wait() for host in hosts] == [143, 143], reports(hosts)
    stopped = [job.events("stopped", name)[-1]["step"] for name in job.names]
    assert stopped[0] == stopped[1] >= 10
    assert [job.failure(name) for name in job.names] == [None, None]
    job.finishes()
    job.check_nothing_lost()
    assert same(job.weights(), left_alone("ddp"))


@pytest.mark.parametrize(("killed", "strategy"), [("algo-1", "fsdp"), ("algo-2", "ddp")][: 1 + FULL])
def test_docker_kill_of_a_host_ends_the_other_and_the_job_goes_on(
    tmp_path: Path, containers: Containers, killed: str, strategy: str
) -> None:
    job = ContainerJob(containers, tmp_path, hosts=2)
    job.digits(moorage_strategy=strategy, moorage_checkpoint_steps=20, moorage_log_every=5)
    hosts = dict(zip(job.names, job.start(), strict=True))
    other = next(name for name in job.names if name != killed)
    hosts["algo-1"].wait_for("#metric step=25 ", DEADLINE)
    wait_until(lambda: job.events("save"), what="a checkpoint")
    began = time.monotonic()
    hosts[killed].signal("SIGKILL")
    assert hosts[other].wait(30) == 69, hosts[other].logs()
    seconds = time.monotonic() - began
    print(f"docker kill of {killed}: {other} has ended {seconds:.1f} s later")
    assert seconds < 15
    assert hosts[killed].wait() == 137
    assert (job.failure(other) or "").startswith(f"{killed}: lost the host {killed}: ")
    assert job.failure(killed) is None, "nobody was left to write it"

    for host in hosts.values():
        host.start_again()
    assert [host.wait(DEADLINE) for host in hosts.values()] == [0, 0], reports([*hosts.values()])
    (resume,) = job.events("resume")
    assert resume["step"] in range(20, EPOCHS * STEPS_PER_EPOCH, 20)
    assert job.failure(other) is None, "that of the start before is gone"
    assert same(job.weights(), left_alone(strategy))
