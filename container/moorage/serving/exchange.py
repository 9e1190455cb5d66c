"""What the front and a model process tell each other: a request, and its answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class RequestError(Exception):
    """A request that cannot be answered, through the client's own doing; handlers raise it to say so.

    message: what the client is told. status: 400 to 499; 422 where the body was read and means nothing to the model.
    """

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.message, self.status = message, status


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One POST to /invocations. body: read-only, and gone once the request is answered: what is kept is copied."""

    id: str
    body: memoryview
    content_type: str = ""
    accept: str = ""
    custom_attributes: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """body: the whole, or an iterator of chunks, each sent as it comes; closed early when the client has left."""

    body: bytes | memoryview | Iterator[bytes]
    status: int = 200
    content_type: str = "application/json"
    custom_attributes: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class Servable(Protocol):
    """A loaded model, in its process."""

    def describe(self) -> str:
        """One line for the log: what was loaded, from which files, on which device."""

    def warm_up(self) -> str:
        """Answer the artifact's example once, and say in a line what was done or why not. Raises ModelError."""

    def answer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """One answer per request, in order. Raises nothing: what fails for a request is its answer, and in the log."""
