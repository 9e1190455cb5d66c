"""What ranks wish for, and what becomes of it where whoever asks cannot do it."""

from __future__ import annotations

import torch.distributed as dist

from moorage.training.stop import SAVE, STOP, Agreement
from ranks.gloo import run_ranks


def _wish_before_an_evaluation(rank: int) -> list[int]:
    agreement = Agreement(dist.group.WORLD)
    return [
        agreement.exchange(SAVE if rank == 0 else 0),
        agreement.exchange(STOP if rank == 1 else 0, able=STOP),
        agreement.settle(0, able=STOP),
        agreement.exchange(0),
        agreement.exchange(0),
    ]


def test_a_save_agreed_on_in_an_evaluation_is_not_forgotten() -> None:
    """Rank 0 asks once for each save by the clock: were it forgotten, there would never be another."""
    assert run_ranks(_wish_before_an_evaluation, 2) == [[0, 0, STOP, SAVE, 0]] * 2
