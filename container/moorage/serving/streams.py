"""Answers that come in parts: generators and async generators of handlers, as an iterator of bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from moorage.serving.codecs import to_json

_T = TypeVar("_T")
_END = object()
_loop: asyncio.AbstractEventLoop | None = None


def finish(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """What an async handler returns. One loop for all, since what it keeps open belongs to its loop."""
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
    return _loop.run_until_complete(coroutine)


def is_stream(value: Any) -> bool:
    return isinstance(value, Iterator | AsyncIterator)


class Stream:
    """The bytes of what a handler yields: bytes and text as they are, another value as a line of JSON.

    The first part is waited for at once, so that a handler that fails before it is answered as any other is.
    guard: what the handler runs under. is_json: whether it yields lines of JSON.
    """

    def __init__(
        self, parts: Iterator[Any] | AsyncIterator[Any], guard: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._parts, self._guard = parts, guard
        self._first = self._part()
        self.is_json = not isinstance(self._first, str | bytes | bytearray | memoryview) and self._first is not _END

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        part, self._first = (self._first, None) if self._first is not None else (self._part(), None)
        if part is _END:
            self._first = _END
            raise StopIteration
        if isinstance(part, str):
            return part.encode()
        return bytes(part) if isinstance(part, bytes | bytearray | memoryview) else to_json(part) + b"\n"

    def close(self) -> None:
        """End the handler where it stands: its finally runs, as its client has left."""
        self._first = _END
        with self._guard():
            if isinstance(self._parts, AsyncIterator):
                if hasattr(self._parts, "aclose"):
                    finish(self._parts.aclose())
            elif hasattr(self._parts, "close"):
                self._parts.close()

    def _part(self) -> Any:
        with self._guard():
            if isinstance(self._parts, AsyncIterator):
                return finish(_next(self._parts))
            return next(self._parts, _END)


async def _next(parts: AsyncIterator[Any]) -> Any:
    return await anext(parts, _END)
