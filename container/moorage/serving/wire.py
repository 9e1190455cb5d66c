"""Frames between the front and a model process, over a pair of sockets that never leaves this container.

A frame is its size (4 bytes, itself included), its kind, its flags, and what is packed below.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple

REQUEST, CANCEL, CREDIT, READY, FAILED, ANSWER, CHUNK, DROPPED = range(1, 9)
"""Kinds; the first three are for the model process. READY and FAILED: the model is loaded, or cannot be. CHUNK: more of
an answer. DROPPED: what ends a request that was not begun, for it was cancelled or its deadline had passed."""

LAST, BROKEN = 1, 2
"""Flags. LAST: of its batch, or of an answer. BROKEN: the answer ends here, before its end."""

INLINE = 16 * 1024
"""Bytes of a request's body that travel in its frame; a longer one lies in the arena."""

CHUNK_SIZE = 64 * 1024
"""Bytes of an answer's body in one frame."""

CREDIT_BYTES = 1024 * 1024
"""Of one answer that may be on their way, taken by nobody: then the model process does something else."""

NOWHERE = 2**64 - 1
"""Offset of a body that is in its frame; length of one that is not known."""

_SIZE = Struct("<I")
_REQUEST = Struct("<IBBxxIQdQQ")
_ANSWER = Struct("<IBBHIQIIQ")
_NUMBER = Struct("<IBBxxQ")
_CREDIT = Struct("<IBBxxQQ")
_TEXT = Struct("<IBBxx")


class Frames:
    """Bytes in, whole frames out, whatever the pieces they come in."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[memoryview]:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        view = memoryview(data)
        frames: list[memoryview] = []
        while end - at >= 4:
            size: int = _SIZE.unpack_from(data, at)[0]
            if end - at < size:
                break
            frames.append(view[at : at + size])
            at += size
        self._rest = data[at:] if at < end else b""
        return frames


def kind_of(frame: memoryview) -> int:
    return frame[4]


# To the model process


class RequestFrame(NamedTuple):
    """deadline: by time.monotonic, which is one clock for all processes. texts: id, content type, accept, custom
    attributes, then names and values of all headers in turn. body: in the frame, or at `offset` in the arena.
    """

    number: int
    is_last: bool
    deadline: float
    texts: list[str]
    body: memoryview
    offset: int
    length: int


def request_head(
    id: bytes, content_type: bytes, accept: bytes, custom_attributes: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    return b"\0".join((id, content_type, accept, custom_attributes, *itertools.chain.from_iterable(headers)))


def pack_request(
    number: int, *, last: bool, deadline: float, head: bytes, body: bytes, offset: int = NOWHERE, length: int = 0
) -> bytes:
    size = _REQUEST.size + len(head) + len(body)
    return _REQUEST.pack(size, REQUEST, last, len(head), number, deadline, offset, length) + head + body


def unpack_request(frame: memoryview) -> RequestFrame:
    _, _, last, head_size, number, deadline, offset, length = _REQUEST.unpack_from(frame)
    body_at = _REQUEST.size + head_size
    texts = str(frame[_REQUEST.size : body_at], "latin-1").split("\0")
    return RequestFrame(number, bool(last), deadline, texts, frame[body_at:], offset, length)


def pack_cancel(number: int) -> bytes:
    return _NUMBER.pack(_NUMBER.size, CANCEL, 0, number)


def pack_credit(number: int, size: int) -> bytes:
    return _CREDIT.pack(_CREDIT.size, CREDIT, 0, number, size)


def unpack_credit(frame: memoryview) -> tuple[int, int]:
    """The number of the request, and the bytes its client has taken."""
    _, _, _, number, size = _CREDIT.unpack(frame)
    return number, size


# From the model process


class AnswerFrame(NamedTuple):
    """The whole answer, or its beginning. microseconds: that the model took for the batch.

    texts: content type, custom attributes, then names and values of headers in turn. length: of the whole body.
    """

    number: int
    flags: int
    status: int
    batch_size: int
    microseconds: int
    texts: list[bytes]
    length: int
    body: bytes


def answer_head(content_type: str, custom_attributes: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """None of them holds a control character; see `heads.sendable`."""
    texts = (content_type, custom_attributes, *itertools.chain.from_iterable(headers))
    return "\0".join(texts).encode("latin-1", "replace")


def pack_answer(
    number: int, *, flags: int, status: int, batch_size: int, microseconds: int, head: bytes, length: int, piece: int
) -> bytes:
    """All but the body, of which `piece` bytes follow."""
    size = _ANSWER.size + len(head) + piece
    return _ANSWER.pack(size, ANSWER, flags, status, len(head), number, batch_size, microseconds, length) + head


def unpack_answer(frame: memoryview) -> AnswerFrame:
    _, _, flags, status, head_size, number, batch_size, microseconds, length = _ANSWER.unpack_from(frame)
    body_at = _ANSWER.size + head_size
    texts = bytes(frame[_ANSWER.size : body_at]).split(b"\0")
    return AnswerFrame(number, flags, status, batch_size, microseconds, texts, length, bytes(frame[body_at:]))


def pack_chunk(number: int, *, flags: int, piece: int) -> bytes:
    """All but the chunk, whose `piece` bytes follow."""
    return _NUMBER.pack(_NUMBER.size + piece, CHUNK, flags, number)


def unpack_chunk(frame: memoryview) -> tuple[int, int, bytes]:
    """The number of the request, the flags, and the chunk."""
    _, _, flags, number = _NUMBER.unpack_from(frame)
    return number, flags, bytes(frame[_NUMBER.size :])


def pack_dropped(number: int) -> bytes:
    return _NUMBER.pack(_NUMBER.size, DROPPED, LAST, number)


def number_of(frame: memoryview) -> int:
    """Of a frame that says no more: CANCEL, DROPPED."""
    number: int = _NUMBER.unpack(frame)[3]
    return number


def pack_text(kind: int, text: str) -> bytes:
    data = text.encode("utf-8", "backslashreplace")
    return _TEXT.pack(_TEXT.size + len(data), kind, 0) + data


def text_of(frame: memoryview) -> str:
    """Of READY and FAILED."""
    return str(frame[_TEXT.size :], "utf-8")
