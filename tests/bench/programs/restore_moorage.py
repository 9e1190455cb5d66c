"""The beginning of a program: a job that is started again has its state back when run.track() returns."""

from __future__ import annotations

import sys
import time

from state import batch, build_model, build_optimizer, loss_of

import moorage

run = moorage.start()
model = run.parallelize(build_model())
optimizer = build_optimizer(model)
run.mean(0.0)  # so that the ranks begin together
started = time.perf_counter()
run.track(model=model, optimizer=optimizer)
if run.steps_done:
    sys.stdout.write(f"restored in {time.perf_counter() - started}\n")
else:
    run.backward(loss_of(model, batch()))
    run.step()
    run.save()
run.finish()
