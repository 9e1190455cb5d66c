"""A few words of shared memory in which a model process leaves what it is at: readable whatever happened to it."""

from __future__ import annotations

import mmap
import os
import time

_SIZE = 4096
_BEGUN, _SINCE = 0, 1


class Page:
    """One for each model process; the front makes it and reads it, the process writes it. Words are written whole."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._words = memoryview(mmap.mmap(descriptor, _SIZE)).cast("Q")

    @classmethod
    def make(cls) -> Page:
        descriptor = os.memfd_create("moorage-page")
        os.ftruncate(descriptor, _SIZE)
        return cls(descriptor)

    def begin(self, number: int | None = None) -> None:
        """The model is given requests up to this number; None: it goes on with an answer."""
        self._words[_SINCE] = time.monotonic_ns()
        if number is not None:
            self._words[_BEGUN] = number

    def end(self) -> None:
        self._words[_SINCE] = 0

    @property
    def begun(self) -> int:
        """Of all requests it was sent, those up to this number have been begun."""
        return self._words[_BEGUN]

    def busy_seconds(self) -> float:
        """How long the model has been at what it is at; 0 if at nothing."""
        since = self._words[_SINCE]
        return (time.monotonic_ns() - since) / 1e9 if since else 0.0

    def close(self) -> None:
        """The front's, when the process has ended."""
        os.close(self.descriptor)
