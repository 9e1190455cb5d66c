"""A few threads that belong to one transfer. No torch here."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """Do things beside each other; at the end of the `with` all are done or were never begun.

    Not concurrent.futures' pools: those take no work once the main thread has ended, while the last save of a program
    that failed may still be under way.
    """

    def __init__(self, number: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name="s3") for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def submit(self, action: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._tasks.put((future, action))
        return future

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, action = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(action())
                except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
                    future.set_exception(error)

    def close(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
