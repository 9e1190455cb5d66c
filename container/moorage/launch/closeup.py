"""The stacks of this host's ranks, taken a few times one after the other: what moves in between is not stuck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moorage.contract.progress import Mark, stacks_file
from moorage.launch.loop import Loop
from moorage.launch.stacks import Stacks, ask

TIMES, APART = 3, 0.5
"""How often, and seconds in between: also those that a rank has to answer on a busy host."""

Answers = list[tuple[Mark, list[Stacks]]]


class CloseUp:
    """done: called once, with what each rank answered, nothing where it did not."""

    def __init__(self, loop: Loop, marks: Sequence[Mark], run_folder: Path, done: Callable[[Answers], None]) -> None:
        self._loop, self._done = loop, done
        self._answers: Answers = [(mark, []) for mark in marks]
        self._files = [stacks_file(run_folder, mark.local_rank) for mark in marks]
        self._read = [path.stat().st_size if path.exists() else 0 for path in self._files]
        self._left = TIMES
        self._ask()

    def _ask(self) -> None:
        for mark, _ in self._answers:
            ask(mark.pid)
        self._left -= 1
        self._loop.after(APART, self._collect)

    def _collect(self) -> None:
        for number, path in enumerate(self._files):
            if text := _rest(path, self._read[number]):
                self._read[number] += len(text)
                self._answers[number][1].append(Stacks.parse(text.decode("utf-8", "replace")))
        if self._left:
            self._ask()
        else:
            self._done(self._answers)


def _rest(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:  # another attempt has begun
        return b""
