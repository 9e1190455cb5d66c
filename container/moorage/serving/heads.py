"""What of a handler's headers can be sent: the rest is HTTP's own, or would be read as something else."""

from __future__ import annotations

import functools
import logging
import re

from moorage.serving.wire import answer_head

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OURS = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "date",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-amzn-sagemaker-custom-attributes",
        "x-request-id",
    }
)

logger = logging.getLogger("moorage")


@functools.lru_cache(maxsize=64)
def sendable(content_type: str, custom_attributes: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    """The head of an answer's frame. What is left out is logged; once for each, as long as it is remembered here."""
    kept = [pair for pair in headers if _is_sendable(*pair)]
    for name, _value in headers:
        if name not in {name for name, _ in kept}:
            logger.warning("the header %r of an answer is left out: it is HTTP's own, or cannot be sent", name)
    return answer_head(_CONTROL.sub(" ", content_type), _CONTROL.sub(" ", custom_attributes), kept)


def _is_sendable(name: str, value: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name.lower() not in _OURS and not _CONTROL.search(value)
