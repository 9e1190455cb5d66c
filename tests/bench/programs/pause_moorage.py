"""The loop of the README, saving by run.save()."""

from __future__ import annotations

import time

from state import Whole, batch, build_model, build_optimizer, loss_of
from window import take_turns

import moorage

run = moorage.start()
model = run.parallelize(build_model())
optimizer = build_optimizer(model)
reached: list[float] = []
# The toolkit waits for its copy in a hook of the step: these two are called before it and after it.
optimizer.register_step_pre_hook(lambda *_: reached.append(time.perf_counter()))
run.track(model=model, optimizer=optimizer)
optimizer.register_step_pre_hook(lambda *_: reached.append(time.perf_counter()))
x = batch()


def step() -> None:
    run.backward(loss_of(model, x))
    run.step()


def save(_number: int) -> Whole:
    run.save()
    return (run.config.checkpoint_folder / f"step-{run.steps_done:08d}" / "manifest.json").exists


take_turns(step=step, save=save, waited=lambda: reached[-1] - reached[-2])
run.finish()
