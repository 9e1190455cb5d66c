"""A rank that saves and waits: seconds from the return of run.save() until the checkpoint is committed."""

from __future__ import annotations

import os
import time

from state import batch, build_model, build_optimizer, loss_of
from turns_client import Turns

import moorage

run = moorage.start()
model = run.parallelize(build_model())
optimizer = build_optimizer(model)
run.track(model=model, optimizer=optimizer)
x, turns = batch(), Turns(run.rank)
while turns.wait():
    # A step is saved once only.
    run.backward(loss_of(model, x))
    run.step()
    run.save()
    called = time.perf_counter()
    manifest = run.config.checkpoint_folder / f"step-{run.steps_done:08d}" / "manifest.json"
    while not manifest.exists():
        time.sleep(0.0005)
    taken = time.perf_counter() - called
    os.sync()
    turns.report(taken)
run.finish()
