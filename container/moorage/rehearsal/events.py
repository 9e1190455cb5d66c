"""What happens in a rehearsal, as it happens. `rehearse` tells each event to its listener and to events.jsonl.

`time` is in seconds since 1970.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Event:
    time: float

    def to_json(self) -> dict[str, Any]:
        return {"event": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """A SecondaryStatus of DescribeTrainingJob: Starting, Downloading, Training, Interrupted, Uploading, Completed, ...

    status: the TrainingJobStatus with it.
    """

    status: str
    secondary: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """Something to be said plainly, such as that hosts are processes here."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, kw_only=True)
class Copied(Event):
    """Bytes of `what`, such as "channel train to algo-1", so far and of how many."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(Event):
    """Containers are made, and are started now. number: from 1."""

    number: int
    hosts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AttemptEnded(Event):
    """All containers are gone. codes: exit code of each host. step: the highest seen, None where none was."""

    number: int
    codes: dict[str, int]
    why: str
    step: int | None


@dataclass(frozen=True, kw_only=True)
class HostLine(Event):
    """One line that a host wrote, without its newline."""

    host: str
    stream: Literal["stdout", "stderr"]
    line: str


@dataclass(frozen=True, kw_only=True)
class Metric(Event):
    """A metric regex matched. value: None where what it caught is no number."""

    host: str
    name: str
    value: float | None
    step: int | None


@dataclass(frozen=True, kw_only=True)
class Synced(Event):
    """The checkpoint agent of a host did something with one file. action: cut is an upload that was broken off."""

    host: str
    action: Literal["uploaded", "deleted", "restored", "cut"]
    file: str
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Interrupted(Event):
    """An interruption begins. host: None is all of them. step: the highest seen so far."""

    number: int
    hard: bool
    host: str | None
    step: int | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Faulted(Event):
    """A fault was made, or with `over` it is past."""

    kind: str
    host: str
    step: int | None
    over: bool = False


class Listener(Protocol):
    """Is told every event, by several threads but never by two at once. It should not take long."""

    def __call__(self, event: Event, /) -> None: ...


KINDS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Phase, Note, Copied, AttemptStarted, AttemptEnded, HostLine, Metric, Synced, Interrupted, Faulted,
    )
}  # fmt: skip


def read_events(path: Path) -> list[Event]:
    """Those of a run's events.jsonl, oldest first; a torn last line is passed over."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            given = json.loads(line)
            found.append(KINDS[given.pop("event")](**given))
        except (ValueError, KeyError, TypeError):
            continue
    return found
