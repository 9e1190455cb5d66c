"""What a Run tells the ledger of its loop, for the account of where the time went."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from moorage.contract.ledger import Ledger

EVERY = 30.0
"""Seconds between two words on how far training is. What a host that vanishes has done since then nobody knows."""


class Journal:
    """Of one rank. A step costs it a look at the clock."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._begun = False
        self._next = math.inf if ledger.path is None else 0.0

    def begin(self, step: int) -> None:
        """Training begins, with `step` steps done; said once."""
        if not self._begun:
            self._begun = True
            self._ledger.write("training", step=step)

    def step(self, step: int) -> None:
        """So many steps are done."""
        now = time.monotonic()
        if now >= self._next:
            first, self._next = not self._next, now + EVERY
            self.begin(step)
            if not first:
                self._ledger.write("progress", step=step)

    @contextmanager
    def evaluation(self, step: int) -> Iterator[None]:
        self._ledger.write("evaluating", step=step)
        try:
            yield
        finally:
            self._ledger.write("evaluated", step=step)
