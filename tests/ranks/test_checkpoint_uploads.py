"""Hosts without a shared disk, each with an upload agent of its own, prune alike."""

from __future__ import annotations

from pathlib import Path

import torch

from moorage.checkpoint.checkpointer import Checkpointer, SaveInfo
from moorage.checkpoint.layout import UPLOADED, UPLOADING, step_name, steps
from ranks.gloo import run_ranks


def save_and_upload(rank: int, base: str, last: int) -> list[list[int]]:
    """What is on this host after each save. Host 0 uploads at once, host 1 no step after `last`."""
    folder = Path(base) / f"host-{rank}"
    one = Checkpointer(folder, rank=rank, world_size=2, local_rank=0, host=f"algo-{rank}", keep=1)
    held = []
    for step in (10, 20, 30, 40):
        assert one.save({f"part/{rank}": torch.full((10,), step)}, info=SaveInfo(step=step), objects={})
        outcome = one.wait()
        assert outcome is not None and outcome.committed
        held.append(steps(folder))
        for path in list((folder / step_name(step)).iterdir()) if rank == 0 or step <= last else ():
            for mark in (UPLOADING, UPLOADED):
                path.with_name(path.name + mark).touch()
    one.close()
    return held


def test_a_host_waits_for_the_uploads_of_the_others(tmp_path: Path) -> None:
    for last, held in (
        (10, [[10], [10, 20], [10, 20, 30], [10, 20, 40]]),
        (40, [[10], [10, 20], [20, 30], [30, 40]]),
    ):
        assert run_ranks(save_and_upload, 2, str(tmp_path / str(last)), last) == [held, held]
