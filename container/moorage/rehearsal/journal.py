"""Where the events of a run go: its listener, events.jsonl, and a log of each host."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

from moorage.rehearsal.events import AttemptStarted, Event, HostLine, Listener

FILE = "events.jsonl"
LOGS = "logs"
_E = TypeVar("_E", bound=Event)


class Journal:
    """Threads may tell it things; the listener hears them one after the other."""

    def __init__(self, folder: Path, listener: Listener) -> None:
        self._folder, self._listener = folder, listener
        self._lock = threading.RLock()
        self._events = (folder / FILE).open("a", encoding="utf-8", buffering=1)
        self._logs: dict[str, TextIO] = {}
        (folder / LOGS).mkdir(exist_ok=True)

    def tell(self, kind: Callable[..., _E], /, **given: Any) -> None:
        """An event of this moment."""
        with self._lock:
            event = kind(time=time.time(), **given)
            self._events.write(json.dumps(event.to_json()) + "\n")
            if isinstance(event, HostLine):
                self._log(event.host).write(event.line + "\n")
            elif isinstance(event, AttemptStarted):
                for host in event.hosts:
                    self._log(host).write(f"--- attempt {event.number}\n")
            self._listener(event)

    def _log(self, host: str) -> TextIO:
        if host not in self._logs:
            path = self._folder / LOGS / f"{host}.log"
            self._logs[host] = path.open("a", encoding="utf-8", buffering=1)
        return self._logs[host]

    def close(self) -> None:
        with self._lock:
            for file in (self._events, *self._logs.values()):
                file.close()
