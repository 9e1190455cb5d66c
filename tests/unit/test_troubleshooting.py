"""Every error that a user can cause has its entry in docs/troubleshooting.md, found by the words of the error."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage import errors

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CLASSES = {
    name
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, errors.MoorageError) and value is not errors.MoorageError
}


def fixed_parts(text: ast.expr) -> list[str]:
    """What a message says whatever the values in it."""
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return [text.value]
    if isinstance(text, ast.JoinedStr):
        return [str(part.value) for part in text.values if isinstance(part, ast.Constant)]
    if isinstance(text, ast.BinOp):
        return [*fixed_parts(text.left), *fixed_parts(text.right)]
    return []


def messages() -> Iterator[tuple[str, str]]:
    for file in sorted([*(ROOT / "container" / "moorage").rglob("*.py"), *(ROOT / "image").glob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES and node.args:
                parts = [part.strip(" :,.'") for part in fixed_parts(node.args[0])]
                if any(parts):
                    yield max(parts, key=len), f"{file.relative_to(ROOT)}:{node.lineno}"


@pytest.mark.parametrize(("words", "place"), sorted(set(messages())))
def test_the_page_has_the_words_of(words: str, place: str) -> None:
    assert words in PAGE, f"{place} raises {words!r}: say in docs/troubleshooting.md what it means and what to do"


def test_the_search_finds_the_messages() -> None:
    found = {words for words, _ in messages()}
    assert len(found) > 50
    assert "is not valid JSON" in found
