"""Loading a checkpoint while it is still being verified: the disk is read once for both, and the memory for optimizer
state is there when the verification ends.

What is loaded so counts only when the verification of this host found nothing. Else it is loaded again, over it, from
what was verified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from moorage.checkpoint.manifest import Manifest

Load = Callable[[Manifest], Mapping[str, Tensor]]


class Ahead:
    """load: fills the tensors that are wanted of a checkpoint, and returns them; what it raises is no matter here."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="load-ahead")
        self._begun: tuple[Manifest, Future[Mapping[str, Tensor]]] | None = None

    def begin(self, manifest: Manifest) -> None:
        """Its verification begins."""
        self.drop()
        self._begun = manifest, self._pool.submit(self._load, manifest)

    def drop(self) -> None:
        """It is not to be used as it is. Waits, so that nothing writes into the tensors behind whoever loads next."""
        if self._begun is not None:
            self._begun[1].exception()
            self._begun = None

    def tensors(self, manifest: Manifest) -> Mapping[str, Tensor] | None:
        """Those that were loaded of this checkpoint, once they are; None where there are none that could be used."""
        if self._begun is None or self._begun[0] is not manifest or self._begun[1].exception() is not None:
            return None
        return self._begun[1].result()

    def close(self) -> None:
        """Waits for what was begun."""
        self._pool.shutdown()
        self._begun = None
