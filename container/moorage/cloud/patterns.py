"""The patterns of AWS's service models, which are Java's regular expressions, as Python's."""

from __future__ import annotations

import re
import unicodedata

_NOTHING = "\U0010ffff"
"""A character of no text: a class may not be empty."""

_SURROGATES = r"\uD800\uDC00-\uDBFF\uDFFF"
"""All characters beyond the first plane, as Java counts them."""

_PROPERTY = re.compile(r"\\p\{(\w+)\}")


def matches(pattern: str, text: str) -> bool | None:
    """Whether all of `text` matches; None for a pattern that Python has no way to read."""
    try:
        return re.fullmatch(_translated(pattern, text), text, re.ASCII) is not None
    except re.error:
        return None


def _translated(pattern: str, text: str) -> str:
    r"""`pattern` for this text alone: \p{L} becomes the letters that occur in it, which is all that matters."""
    pattern = pattern.replace(_SURROGATES, "\U00010000-\U0010fffe")
    done, end = "", 0
    for found in _PROPERTY.finditer(pattern):
        done += pattern[end : found.start()]
        members = "".join(re.escape(char) for char in sorted(set(text)) if _is(char, found[1])) or _NOTHING
        done += members if _in_class(pattern[: found.start()]) else f"[{members}]"
        end = found.end()
    return done + pattern[end:]


def _is(char: str, category: str) -> bool:
    if category == "Alnum":
        return char.isascii() and char.isalnum()
    if category == "Print":
        return " " <= char <= "~"  # of ASCII, as in POSIX
    return unicodedata.category(char).startswith(category)


def _in_class(before: str) -> bool:
    plain = re.sub(r"\\.", "", before)
    return plain.rfind("[") > plain.rfind("]")
