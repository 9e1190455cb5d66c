"""Files from one host to others over the group, in pieces, so that none is ever held in memory whole.

Sender and receivers stay in step whatever happens: a file has as many bytes as its manifest says, and those who failed
go on sending zeros, or throwing away. The hash at the end tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from moorage.checkpoint.durable import CHUNK, FileFacts
from moorage.checkpoint.group import Group
from moorage.checkpoint.source import Source
from moorage.checkpoint.storage import Writer
from moorage.errors import describe


def send_file(source: Source, name: str, facts: FileFacts, targets: Sequence[int], group: Group) -> str:
    """Why it could not be sent as it should be, or empty."""
    reason = ""
    buffer = torch.zeros(min(CHUNK, facts.size), dtype=torch.uint8)
    position = 0

    def send(piece: torch.Tensor) -> None:
        nonlocal position
        for target in targets:
            group.send(piece, target)
        position += len(piece)

    try:
        with source.open(name) as file:
            while position < facts.size:
                piece = buffer[: min(facts.size - position, CHUNK)]
                file.read_into(_view(piece), position)
                send(piece)
    except OSError as error:
        reason = f"{name}: {describe(error)}"
        buffer.zero_()
        while position < facts.size:
            send(buffer[: min(facts.size - position, CHUNK)])
    return reason


def receive_file(
    writing: AbstractContextManager[Writer], name: str, facts: FileFacts, source: int, group: Group
) -> str:
    """Write a file, whole and verified, or nothing. Empty, or why what came is not the file.

    Raises OSError when it cannot be written here, once everything has come.
    """
    pieces = _Pieces(group, source, facts.size)
    try:
        with writing as file:
            for piece in pieces:
                file.write(piece)
            found = file.finish()
            if (found.size, found.xxh3_128) != (facts.size, facts.xxh3_128):
                raise _Changed
    except _Changed:
        return f"{name}: changed while it was fetched"
    finally:
        pieces.drain()
    return ""


class _Changed(Exception):
    """Nothing is to be left of a file that came in another form than its manifest has it."""


class _Pieces:
    """The pieces of a file that another rank sends."""

    def __init__(self, group: Group, source: int, size: int) -> None:
        self._group, self._source, self._left = group, source, size
        self._buffer = torch.empty(min(size, CHUNK), dtype=torch.uint8)

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> memoryview:
        if not self._left:
            raise StopIteration
        piece = self._buffer[: min(self._left, CHUNK)]
        self._left -= len(piece)
        self._group.receive(piece, self._source)
        return _view(piece)

    def drain(self) -> None:
        for _ in self:
            pass


def _view(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.numpy())  # type: ignore[arg-type]
