"""What commands share at the terminal: results go to stdout, whatever is told meanwhile to stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moorage.errors import MoorageError

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Tell nothing on the way; only the result and errors.")]


def result(value: Any, *, as_json: bool = False) -> None:
    """Print what the command was asked for: lines, or JSON."""
    if as_json:
        print(json.dumps(value, indent=2, allow_nan=False))
    else:
        lines = [value] if isinstance(value, str) else value
        print("\n".join(lines))


def narrator(*, quiet: bool = False) -> Console:
    """stderr, in colours where it is a terminal and NO_COLOR is not set."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)


def narrate(console: Console, text: str, style: str = "") -> None:
    """One line of ours."""
    from rich.text import Text

    console.print(Text.assemble(("moorage: ", "bold"), (text, style)))


@contextmanager
def logged(tell: Callable[[str, str], None]) -> Iterator[None]:
    """What inner modules log is told meanwhile. tell: takes the text and its style."""
    handler = _Handler(tell)
    logger = logging.getLogger("moorage")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Handler(logging.Handler):
    def __init__(self, tell: Callable[[str, str], None]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        self._tell(("warning: " if warning else "") + record.getMessage(), "yellow" if warning else "")


def show_error(error: MoorageError, env: Mapping[str, str]) -> None:
    """What happened, why, and what to do, a line each."""
    if sys.stderr.isatty() and not env.get("NO_COLOR"):
        bold, red, plain = "\033[1m", "\033[1;31m", "\033[0m"
    else:
        bold = red = plain = ""
    lines = [f"{red}moorage:{plain} {bold}{error.what.rstrip('.')}{plain}"]
    lines += [f"  {name}: {text.rstrip('.')}" for name, text in (("why", error.why), ("fix", error.fix)) if text]
    sys.stdout.flush()
    print("\n".join(lines), file=sys.stderr)


class Progress:
    """How far something is, on stderr: one line that changes, or on no terminal one every ten seconds."""

    def __init__(self, verb: str, *, quiet: bool = False) -> None:
        self._verb = verb
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0 if self._terminal else 10)
        self._width = 0

    def tell(self, name: str, done: int, total: int) -> None:
        """done, total: bytes."""
        if self._quiet or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (0.1 if self._terminal else 10)
        text = f"{self._verb} {name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
        self._width = max(self._width, len(text))
        sys.stderr.write(f"\r{text.ljust(self._width)}" if self._terminal else f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._width and self._terminal:
            sys.stderr.write(f"\r{' ' * self._width}\r")
