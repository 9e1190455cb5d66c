"""The data order: every sample once, whatever the ranks, and on from the same sample on other ranks."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moorage.training import data
from moorage.training.loaders import make_loader

CPU = torch.device("cpu")


def order(num_samples: int, **changes: int | bool) -> data.GlobalOrder:
    given: dict[str, int | bool] = {"batch_size": 4, "shuffle": True, "drop_last": False, "seed": 0}
    return data.GlobalOrder(num_samples, **{"rank": 0, "world_size": 1, **given, **changes})  # type: ignore[arg-type]


@given(
    num_samples=st.integers(1, 60),
    batch_size=st.integers(1, 16),
    worlds=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=4),
)
def test_every_sample_counts_once_across_changing_worlds(
    num_samples: int, batch_size: int, worlds: list[tuple[int, int]]
) -> None:
    """Each world takes two global batches, then hands over to the next; the last one finishes the epoch."""
    seen: Counter[int] = Counter()
    consumed = 0
    for number, (world_size, accumulation) in enumerate(worlds):
        last_world = number == len(worlds) - 1
        steps = []
        for rank in range(world_size):
            plan = order(
                num_samples, batch_size=batch_size, rank=rank, world_size=world_size, accumulation=accumulation
            )
            micros = list(plan.plan(epoch=3, start=consumed))
            steps.append(micros if last_world else micros[: 2 * accumulation])
        assert len({len(micros) for micros in steps}) == 1, "a rank would wait for another for ever"
        for micros in steps:
            for micro in micros:
                if micro.weight:
                    seen.update(micro.part.indices)
        consumed += sum(micro.num_samples for micro in steps[0] if micro.last)
    assert seen == Counter(range(num_samples))


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_weights_make_the_mean_over_the_global_batch(
    num_samples: int, batch_size: int, world_size: int, accumulation: int
) -> None:
    """Gradients are averaged over ranks: weights of a step add up to the world size, each as its samples."""
    plans = [
        list(
            order(num_samples, batch_size=batch_size, rank=r, world_size=world_size, accumulation=accumulation).plan(
                0, 0
            )
        )
        for r in range(world_size)
    ]
    for first in range(0, len(plans[0]), accumulation):
        step = [micro for plan in plans for micro in plan[first : first + accumulation]]
        assert sum(micro.weight for micro in step) == pytest.approx(world_size)
        for micro in step:
            if micro.weight:
                assert micro.weight == pytest.approx(len(micro.part.indices) * world_size / micro.num_samples)


def test_global_batches_are_the_same_on_other_worlds() -> None:
    def batches(world_size: int) -> list[set[int]]:
        plans = [list(order(40, batch_size=8, rank=r, world_size=world_size).plan(1, 0)) for r in range(world_size)]
        return [set().union(*(m.part.indices for m in step)) for step in zip(*plans, strict=True)]

    assert batches(1) == batches(2) == batches(3)


def test_epochs_and_seeds_shuffle_differently() -> None:
    one, other = order(100).permutation(0), order(100).permutation(1)
    assert sorted(one.tolist()) == sorted(other.tolist()) == list(range(100))
    assert one.tolist() != other.tolist() != order(100, seed=1).permutation(1).tolist()


@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_sees_every_sample_and_keeps_ranks_in_step(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    plans = [
        list(
            order(num_samples, batch_size=max(batch_size, world_size), rank=r, world_size=world_size).evaluation_plan()
        )
        for r in range(world_size)
    ]
    assert len({len(plan) for plan in plans}) == 1
    assert all(part.indices for plan in plans for part in plan)
    seen = Counter(index for plan in plans for part in plan for index in part.indices)
    assert set(seen) == set(range(num_samples))
    if num_samples >= world_size:
        assert max(seen.values()) == 1


class Noisy(torch.utils.data.Dataset[float]):
    """A dataset that augments: what it returns depends on every random generator."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> float:
        import numpy as np

        return index + random.random() + torch.rand(()).item() + float(np.random.random())


@pytest.mark.parametrize("workers", [0, 2])
def test_random_augmentation_is_the_same_after_a_resume_and_with_workers(workers: int) -> None:
    def epoch(start: int, num_workers: int) -> list[float]:
        plan = order(24)
        plan.epoch, plan.start = 1, start
        loader = make_loader(Noisy(), plan, device=CPU, options={"num_workers": num_workers})
        return [value for batch in loader for value in batch.tolist()]

    whole = epoch(0, 0)
    assert epoch(0, workers) == whole
    assert epoch(8, workers) == whole[8:]


def test_making_an_iterator_leaves_the_training_random_numbers_alone() -> None:
    loader = make_loader(torch.utils.data.TensorDataset(torch.arange(8)), order(8), device=CPU, options={})
    torch.manual_seed(5)
    before = torch.get_rng_state()
    iter(loader)
    assert torch.get_rng_state().equal(before)


def test_seeds_are_spread() -> None:
    seeds = {data.mix(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert max(seeds) < 2**63
