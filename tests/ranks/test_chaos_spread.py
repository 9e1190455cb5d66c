"""Started again on other ranks, or under another strategy: the same samples, and the same training up to rounding."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ranks.chaos import DEADLINE, ChaosJob, Note, Reference, await_random_moment, dice, left_alone, reports

TOLERANCE = 1e-4
"""Of losses and weights: sums in another order round otherwise."""


@pytest.mark.full(1, short=1)
def test_other_numbers_of_ranks_within_an_epoch(tmp_path: Path, chaos_count: int) -> None:
    die = dice("ranks")
    # Nothing that ranks draw for themselves, so that the losses can be compared. An epoch ends with a batch of two
    # samples, of which the third rank has none.
    options: dict[str, Any] = {
        "samples": 1202,
        "epochs": 2,
        "drop_last": False,
        "noise": 0.0,
        "dropout": 0.0,
        "norm": False,
    }
    alone = left_alone(strategy="auto", **options)
    for number in range(chaos_count):
        job = ChaosJob(tmp_path / str(number), strategy="auto", **options)
        _stop_within(job, die, range(8, 20), ranks_per_host=2)
        _stop_within(job, die, range(28, 40), ranks_per_host=1)
        job.finishes(ranks_per_host=3)
        notes = job.notes()
        # A busy machine stops later than asked for, so the steps are those that the ledger tells.
        first, second = (event["step"] for event in job.events("stopped"))
        trained_by = {step: len({note.rank for note in notes if note.step == step}) for step in range(1, job.steps + 1)}
        assert trained_by == {step: 2 if step <= first else 1 if step <= second else 3 for step in trained_by}
        for epoch in range(2):
            seen = [i for note in notes if note.epoch == epoch and note.weight > 0 for i in note.indices]
            assert sorted(seen) == list(range(1202)), f"epoch {epoch}"
        difference = _furthest_losses(notes, alone.notes)
        _check_resumes(job)
        assert difference < TOLERANCE
        _check_close(job, alone)
        print(f"2 -> 1 -> 3 ranks: every sample once per epoch; losses within {difference:.1g} of those left alone")


@pytest.mark.full(1, short=1)
def test_other_strategies_across_interruptions(tmp_path: Path, chaos_count: int) -> None:
    die = dice("strategies")
    alone = left_alone(strategy="ddp")
    for number in range(chaos_count):
        job = ChaosJob(tmp_path / str(number))
        _stop_within(job, die, range(20, 70), strategy="ddp")
        _stop_within(job, die, range(90, 150), strategy="fsdp")
        job.finishes(strategy="ddp")
        job.check_nothing_lost()
        difference = _furthest_losses(job.notes(), alone.notes)
        assert difference < TOLERANCE
        _check_close(job, alone)
        print(f"ddp -> fsdp -> ddp: losses within {difference:.1g} of those left alone")


def _stop_within(job: ChaosJob, die: random.Random, steps: range, **settings: object) -> None:
    with job.start(**settings) as hosts:
        assert await_random_moment(job, hosts, die, steps=steps), reports(hosts)
        hosts[0].signal()
        assert hosts[0].ends(DEADLINE) == 143, reports(hosts)


def _check_resumes(job: ChaosJob) -> None:
    stopped = [event["step"] for event in job.events("stopped")]
    resumed = [event["step"] for event in job.events("resume")]
    assert stopped == resumed and len(stopped) == 2


def _furthest_losses(notes: Sequence[Note], others: Sequence[Note]) -> float:
    """The largest difference between the losses of a step, each the mean over its whole batch."""
    mine, theirs = _losses(notes), _losses(others)
    assert mine.keys() == theirs.keys()
    return max(abs(mine[step] - theirs[step]) for step in mine)


def _losses(notes: Sequence[Note]) -> dict[int, float]:
    parts: dict[int, list[float]] = defaultdict(list)
    for note in notes:
        parts[note.step].append(note.loss * note.weight)
    return {step: sum(found) / len(found) for step, found in parts.items()}


def _check_close(job: ChaosJob, alone: Reference) -> None:
    for name, tensor in job.weights().items():
        assert tensor.allclose(alone.weights[name], atol=TOLERANCE, rtol=TOLERANCE), name
