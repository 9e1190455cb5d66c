"""SIGTERM at random and at exact moments: nothing is lost, and the weights are those of a run left alone."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import STRATEGIES
from ranks.chaos import DEADLINE, ChaosJob, await_random_moment, dice, is_over, left_alone, reports, spread_of
from support import HostProcess, wait_until


@pytest.mark.full(10, short=1)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stopped_and_started_again_it_trains_the_same_weights(tmp_path: Path, chaos_count: int, strategy: str) -> None:
    die = dice(f"stop-{strategy}")
    alone = left_alone(strategy=strategy)
    stops = jobs = 0
    while stops < chaos_count:
        # Workers in every other job: they must outlive the signal, and change nothing.
        workers = 2 * ((jobs + (strategy == "ddp")) % 2)
        job = ChaosJob(tmp_path / str(jobs), strategy=strategy, workers=workers)
        stops += _interrupt(job, die, most=min(3, chaos_count - stops), set_up=alone.own_start)
        job.check_nothing_lost()
        job.check_equal(alone)
        jobs += 1
    print(f"{stops} of {stops} SIGTERMs under {strategy}: bit-equal, 0 steps lost ({jobs} jobs)")


def _interrupt(job: ChaosJob, die: random.Random, *, most: int, set_up: float) -> int:
    """Start the job until it is done, and stop it on the way; how often it was stopped."""
    stops = 0
    while True:
        with job.start(checkpoint_steps=die.choice([0, 3, 11])) as hosts:
            hosts[0].wait_for("moorage:")  # from here on it can hear a signal
            done = job.peak()
            if stops < most and done < job.steps:
                until = done + max(1, (job.steps - done) * 2 // (most - stops + 2))
                if await_random_moment(job, hosts, die, steps=range(done + 1, until + 1), set_up=set_up):
                    hosts[0].signal()
            code = hosts[0].ends(DEADLINE)
            assert code in (0, 143), reports(hosts)
            assert hosts[0].failure is None
        if code == 0:
            return stops
        stops += 1


@pytest.mark.full(5, short=1)
def test_sigterm_to_one_host_stops_all_at_the_same_step(tmp_path: Path, chaos_count: int) -> None:
    die = dice("stop-one-host")
    alone = left_alone(strategy="ddp")  # its two ranks are on one host: where they are changes no bit
    for number in range(chaos_count):
        job = ChaosJob(tmp_path / str(number), hosts=2, ranks=1)
        with job.start(checkpoint_steps=die.choice([0, 3, 11])) as hosts:
            assert await_random_moment(job, hosts, die, steps=range(1, job.steps - 20)), reports(hosts)
            die.choice(hosts).signal()
            assert [host.ends(DEADLINE) for host in hosts] == [143, 143], reports(hosts)
        assert [host.failure for host in hosts] == [None, None]
        stopped = [job.events("stopped", host=host)[-1]["step"] for host in range(2)]
        last = {note.rank: note.step for note in job.notes()}
        assert stopped == [last[0], last[1]] and last[0] == last[1], (stopped, last)
        job.finishes()
        job.check_nothing_lost()
        job.check_equal(alone)
    print(f"{chaos_count} of {chaos_count} SIGTERMs to one host: same step, 143 on both, 0 steps lost, bit-equal")


WHERE = ("idle", "step", "save", "evaluation", "resume")
"""What a rank is at when the signal comes: idle is waiting for data; in a save its file is on its way to the disk."""

TO = ("all hosts", "one host", "all hosts twice", "one host, then the other")

PROMISED = 115.0
"""Seconds from the signal to the end: the platform kills after 120."""


@pytest.mark.full(40, short=5)
def test_stopped_at_exact_moments_of_a_rank(tmp_path: Path, chaos_count: int) -> None:
    """On two hosts of one rank. One rank lingers where it is until it hears the signal; the other waits for it."""
    die = dice("stop-moments")
    alone = left_alone(strategy="ddp")  # its two ranks are on one host: where they are changes no bit
    ways = {where: itertools.cycle(die.sample(TO, len(TO))) for where in WHERE}
    seconds: list[float] = []
    for number in range(chaos_count // len(WHERE)):
        job = ChaosJob(tmp_path / str(number), hosts=2, ranks=1)
        moments = die.sample(WHERE, len(WHERE))
        if moments[0] == "resume":  # there has to be something to resume from
            moments.reverse()
        seconds += [_stop_at(job, die, where, to=next(ways[where])) for where in moments]
        job.finishes()
        job.check_nothing_lost()
        job.check_equal(alone)
    assert max(seconds) < PROMISED
    print(f"{len(seconds)} of {chaos_count} SIGTERMs at exact moments: same step, 143 on both hosts, bit-equal")
    print(f"  from the signal to the end: {spread_of(seconds)}; promised {PROMISED:.0f} s")


def _stop_at(job: ChaosJob, die: random.Random, where: str, *, to: str) -> float:
    """Stop it once; the seconds from the first signal to the end of the last host."""
    case, rank, done = f"stopped in {where}, by SIGTERM to {to}", die.randrange(2), job.peak()
    job.forget_moments()
    if where == "resume":
        job.let_linger(where, rank)
    with job.start(checkpoint_steps=die.choice([3, 11])) as hosts:
        if where != "resume":
            assert job.await_step(done + die.randrange(1, 8), hosts, since=time.time()), reports(hosts)
            job.let_linger(where, rank)
        hosts[rank].wait_for(f"lingers: {where}", timeout=DEADLINE)
        began = time.monotonic()
        _signal(hosts, die, to)
        assert [host.ends(DEADLINE) for host in hosts] == [143, 143], f"{case}\n{reports(hosts)}"
        seconds = time.monotonic() - began
    assert [host.failure for host in hosts] == [None, None], case
    if where == "resume":
        assert job.peak() == done, case
    else:
        stopped = [job.events("stopped", host=host)[-1]["step"] for host in range(2)]
        last = [job.latest()[rank].step for rank in range(2)]
        assert stopped == last and last[0] == last[1] > done, f"{case}: {stopped} {last}"
    return seconds


def _signal(hosts: Sequence[HostProcess], die: random.Random, to: str) -> None:
    order = die.sample(list(hosts), len(hosts))
    for host in order[:1] if to.startswith("one") else order:
        host.signal()
    if to in ("all hosts twice", "one host, then the other"):
        moment = time.monotonic() + die.uniform(0.0, 0.5)
        wait_until(lambda: time.monotonic() > moment or is_over(hosts), what="the second signal")
        for host in order if to == "all hosts twice" else order[1:]:
            host.signal()
