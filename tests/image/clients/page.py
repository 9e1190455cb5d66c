"""The snippets of docs/clients.md, which is where the tests take the client programs from."""

from __future__ import annotations

import re
from collections.abc import Mapping

from support import ROOT

PAGE = ROOT / "docs" / "clients.md"


def snippet(title: str, language: str = "python", changes: Mapping[str, str] | None = None) -> str:
    """The first block of `language` under the heading `title`. changes: old -> new, each old once in it."""
    _, found, section = PAGE.read_text(encoding="utf-8").partition(f"\n### {title}\n")
    assert found, f"{PAGE} has no heading {title!r}"
    block = re.search(rf"^```{language}\n(.*?)^```$", section.partition("\n### ")[0], re.MULTILINE | re.DOTALL)
    assert block, f"{PAGE} has no {language} under {title!r}"
    text = block[1]
    for old, new in (changes or {}).items():
        assert text.count(old) == 1, f"{old!r} is not once in {title!r}:\n{text}"
        text = text.replace(old, new)
    return text
