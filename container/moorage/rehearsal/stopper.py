"""The wish to end a rehearsal, from whoever has it: Ctrl-C, a signal, a test."""

from __future__ import annotations

import threading


class Stopper:
    """The first `ask` is StopTrainingJob: SIGTERM, the grace, and what is there is uploaded. The second kills at once.

    It may be called from a signal handler.
    """

    def __init__(self) -> None:
        self._asked, self._hard = threading.Event(), threading.Event()

    def ask(self) -> None:
        (self._hard if self._asked.is_set() else self._asked).set()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    @property
    def hard(self) -> bool:
        return self._hard.is_set()

    def wait(self, seconds: float) -> bool:
        """Up to `seconds`; True as soon as a stop is asked."""
        return self._asked.wait(seconds)
