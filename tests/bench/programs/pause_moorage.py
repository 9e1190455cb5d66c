"""The loop of the README, saving by run.save()."""

from __future__ import annotations

from collections.abc import Callable

import torch
from window import batch, build_model, loss_of, take_turns

import moorage

run = moorage.start()
model = run.parallelize(build_model())
optimizer = torch.optim.AdamW(model.parameters())
run.track(model=model, optimizer=optimizer)
x = batch()


def step() -> None:
    run.backward(loss_of(model, x))
    run.step()


def save(_number: int) -> Callable[[], bool]:
    run.save()
    manifest = run.config.checkpoint_folder / f"step-{run.steps_done:08d}" / "manifest.json"
    return manifest.exists


take_turns(step=step, save=save)
run.finish()
