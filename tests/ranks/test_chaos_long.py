"""A job that is killed again and again, whole or a rank of it, and started anew as the platform would until it ends."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from moorage.contract.goodput import Goodput, measure
from moorage.contract.ledger import read_ledger
from ranks.chaos import DEADLINE, ChaosJob, dice, is_over, left_alone, rank_pids, reports
from support import HostProcess, wait_until

BETWEEN = 15.0
"""Seconds from one kill to the next, on average."""

PAUSE = 0.3
"""Seconds of a step while kills come, so that no job is over before they are."""

STEPS_PER_EPOCH = 40


class Killer:
    """Of a random rank, or of everything, at moments that know nothing of each other."""

    def __init__(self, job: ChaosJob, die: random.Random, *, seconds: float) -> None:
        self._job, self._die = job, die
        # A short pass has some kills too.
        self._seconds, self._between = seconds, min(BETWEEN, seconds / 3)
        self._until = 0.0
        self._best: list[int] = []
        self.kills: Counter[str] = Counter()

    def works(self, hosts: list[HostProcess]) -> bool:
        """Until it has killed everything; False when its time is over, and everything killed a last time.

        Its time begins with the first step.
        """
        if not self._until:
            assert self._job.await_step(1, hosts), reports(hosts)
            self._until = time.monotonic() + self._seconds
        while True:
            moment = time.monotonic() + self._die.expovariate(1 / self._between)
            is_last = moment > self._until
            wait_until(
                lambda: is_over(hosts) or time.monotonic() > min(moment, self._until),  # noqa: B023
                timeout=DEADLINE,
                what="a kill",
            )
            assert not is_over(hosts), reports(hosts)
            if is_last or not self._kill_a_rank(hosts):
                self._kill_all(hosts)
                return not is_last

    def _kill_a_rank(self, hosts: list[HostProcess]) -> bool:
        """False where the die says so, though not the first time; where no rank runs any more; and after two such kills
        without a new step: the third would be taken for an error of the program.
        """
        pids = list(rank_pids(hosts).values())
        best = max([*self._best[-1:], *(note.step for note in self._job.latest().values())])
        if (self.kills["rank"] and self._die.random() < 0.4) or not pids or self._best[-2:] == [best, best]:
            return False
        try:
            os.kill(self._die.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return False
        self._best.append(best)
        self.kills["rank"] += 1
        return True

    def _kill_all(self, hosts: list[HostProcess]) -> None:
        for host in self._die.sample(hosts, len(hosts)):
            host.process.kill()
        assert [host.ends() for host in hosts] == [-signal.SIGKILL] * len(hosts), reports(hosts)
        self.kills["job"] += 1


# Counted in seconds.
@pytest.mark.full(600, short=8)
@pytest.mark.timeout(1800)
def test_killed_every_15_s_it_comes_to_the_same_end(tmp_path: Path, chaos_count: int) -> None:
    # A short pass has the steps of other tests, which have trained the reference already.
    longer = {"epochs": int(chaos_count / PAUSE / STEPS_PER_EPOCH)} if chaos_count > 60 else {}
    alone = left_alone(strategy="ddp", **longer)  # its two ranks are on one host: where they are changes no bit
    job = ChaosJob(tmp_path, hosts=2, ranks=1, pause=PAUSE, **longer)
    killer, more = Killer(job, dice("long"), seconds=chaos_count), True
    given = {"checkpoint_minutes": "auto", "checkpoint_steps": 0, "interruption_hours": BETWEEN / 3600}
    while more:
        with job.start(**given, max_restarts=1000) as hosts:
            more = killer.works(hosts)
    found, began = goodput(job), time.monotonic()
    job.options["pause"] = 0.004
    job.finishes()
    job.check_equal(alone)
    print(
        f"a rank killed {killer.kills['rank']} times, the job {killer.kills['job']} times in {chaos_count} s; came to "
        f"step {found.steps} of {job.steps}; ended {time.monotonic() - began:.0f} s later, bit-equal"
    )
    print("\n".join(found.table()))


def goodput(job: ChaosJob) -> Goodput:
    """By the ledgers of all hosts."""
    records = [record for folder in job.folders for record in read_ledger(folder.checkpoints)]
    found = measure(sorted(records, key=lambda record: record.key))
    assert found is not None
    return found
