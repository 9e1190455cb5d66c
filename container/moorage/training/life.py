"""What a rank tells its supervisor while it runs: its steps, what it is at, its own time, and its stacks when asked."""

from __future__ import annotations

import faulthandler
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from moorage.contract.progress import STACK_SIGNAL, Activity, Progress, stacks_file
from moorage.training.stopwatch import Stopwatch

WARM_UP = 3
"""Steps of an attempt that may take any time: memory is asked for, kernels are chosen, the model is compiled."""

log = logging.getLogger("moorage")


class Life:
    """Of one rank; without a supervisor, to whom it would matter, it says nothing."""

    def __init__(self, run_folder: Path | None, local_rank: int, device: torch.device) -> None:
        """Raises OSError."""
        self.watch = Stopwatch(device)
        self._progress = None
        self._done = 0
        if run_folder is not None:
            _answer_with_stacks(stacks_file(run_folder, local_rank))
            self._progress = Progress.create(run_folder, local_rank)

    def resumed(self, step: int) -> None:
        if self._progress is not None:
            self._progress.update(step)

    def step(self, step: int) -> None:
        """`step` steps are done, the last one just now."""
        if self._progress is None:
            return
        self._done += 1
        if self._progress.activity is Activity.SET_UP and self._done >= WARM_UP:
            self._progress.enter(Activity.TRAINING)
        self._progress.update(step, self.watch.step())

    def sign(self) -> None:
        """Part of something long is done, such as a batch of an evaluation."""
        if self._progress is not None:
            self._progress.sign()

    @contextmanager
    def during(self, activity: Activity) -> Iterator[None]:
        """Something long, in which nobody expects a step."""
        if self._progress is None:
            yield
            return
        before = self._progress.activity
        self._progress.enter(activity)
        try:
            yield
        finally:
            self._progress.enter(before)

    def finishing(self) -> None:
        """No step comes any more."""
        if self._progress is not None:
            self._progress.enter(Activity.FINISHING)

    def left(self) -> None:
        """It was stopped, with its state saved or given up: however its process ends, the job lacks nothing."""
        if self._progress is not None:
            self._progress.enter(Activity.LEFT)


def _answer_with_stacks(path: Path) -> None:
    """faulthandler writes from within the signal handler: also while the main thread sits in a call that does not
    return, or holds the interpreter for itself.
    """
    global _stacks
    _stacks = path.open("ab")
    faulthandler.register(STACK_SIGNAL, _stacks, all_threads=True)


_stacks: object = None
"""Open as long as the process lives: faulthandler knows its descriptor only."""
