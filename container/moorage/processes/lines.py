"""From the bytes of one stream to whole lines, whatever the pieces they come in."""

from __future__ import annotations

LONGEST = 1024 * 1024
"""Bytes of one line held in memory; a longer one goes on in the next."""

CONTINUED = b" [the line goes on]"
PROGRESS_EVERY = 5.0
"""Seconds between two lines of a progress bar."""


class Lines:
    """Bytes in, lines without their newline out. Knows nothing of files or time: `now` is given, in seconds.

    A progress bar redraws itself after a carriage return, for hours in one line: its newest state becomes a line every
    PROGRESS_EVERY seconds, and its last state is never lost. Carriage returns before a newline are only that.
    """

    def __init__(self, *, longest: int = LONGEST, progress_every: float = PROGRESS_EVERY) -> None:
        self._longest, self._every = longest, progress_every
        self._pending = bytearray()
        # Of the line that is being written: whether it is a bar, its newest whole state not said yet, what was said.
        self._is_bar = False
        self._state = b""
        self._said = b""
        self._said_at = float("-inf")

    @property
    def due_at(self) -> float | None:
        """When `due` will have something to say, if nothing comes before."""
        return self._said_at + self._every if self._is_bar and self._newest not in (b"", self._said) else None

    @property
    def _newest(self) -> bytes:
        return bytes(self._pending) or self._state

    def feed(self, data: bytes, now: float) -> list[bytes]:
        *whole, rest = data.split(b"\n")
        lines: list[bytes] = []
        for part in whole:
            self._extend(part, now, lines)
            lines.extend(self._end_line())
        self._extend(rest, now, lines)
        return lines

    def due(self, now: float) -> list[bytes]:
        """The state of a bar that has not moved since."""
        due_at = self.due_at
        return [] if due_at is None or now < due_at else self._say(self._newest, now)

    def close(self) -> list[bytes]:
        """At the end of the stream: a last line without a newline is a line."""
        return self._end_line() if self._newest else []

    def _extend(self, part: bytes, now: float, lines: list[bytes]) -> None:
        *redrawn, rest = part.split(b"\r")
        for piece in redrawn:
            self._append(piece, lines)
            self._is_bar = True
            self._state = bytes(self._pending) or self._state
            self._pending.clear()
        if redrawn and now >= self._said_at + self._every and self._state not in (b"", self._said):
            lines.extend(self._say(self._state, now))
        self._append(rest, lines)

    def _append(self, piece: bytes, lines: list[bytes]) -> None:
        self._pending += piece
        while len(self._pending) > self._longest:
            lines.append(bytes(self._pending[: self._longest]) + CONTINUED)
            del self._pending[: self._longest]

    def _say(self, state: bytes, now: float) -> list[bytes]:
        self._said, self._said_at, self._state = state, now, b""
        return [state]

    def _end_line(self) -> list[bytes]:
        line = self._newest
        # After a carriage return an empty rest is a plain \r\n, or a bar that ends its own line.
        repeated = self._is_bar and line in (b"", self._said)
        self._pending.clear()
        self._is_bar, self._state, self._said, self._said_at = False, b"", b"", float("-inf")
        return [] if repeated else [line]
