"""How a command becomes part of the app: its docstring is its help, with exit codes of its own and examples below."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer


def command(
    app: typer.Typer,
    function: Callable[..., Any],
    panel: str,
    examples: Sequence[str],
    *,
    codes: Mapping[str, str] | None = None,
    name: str | None = None,
) -> None:
    """Add `function` under its own name, or `name`. panel: what it is listed under. codes: of its own, by number."""
    parts = [heading("Examples") + "\n" + "\n".join(f"$ {example}" for example in examples)]
    if codes:
        parts.insert(0, exit_codes(codes))
    app.command(
        name,
        help=reflowed(inspect.getdoc(function) or ""),
        epilog="\n\n".join(parts),
        rich_help_panel=panel,
        no_args_is_help=False,
    )(function)


def exit_codes(codes: Mapping[str, str]) -> str:
    return heading("Exit codes") + "\n" + "\n".join(f"{code:<5}  {meaning}" for code, meaning in codes.items())


def heading(text: str) -> str:
    return f"[bold]{text}[/bold]"


def reflowed(text: str) -> str:
    """Paragraphs as one line each: the terminal's width breaks them, and not the source's."""
    return "\n\n".join(" ".join(part.split()) for part in text.replace("[", r"\[").split("\n\n"))
