"""The ledger: what happened to the job and when, one JSON line each, beside the checkpoints.

Starts, failures, restarts, stops, saves and resumes of every attempt on every host. Goodput, lost work and the gaps
between attempts are computed from it; nothing in it is needed to train on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "ledger"
_POINTER = "ledger-path"

logger = logging.getLogger("moorage")


class Ledger:
    """One file, open for appending by the supervisor of a host and by its first rank at once.

    Every event is one write to a file opened with O_APPEND, so lines of two processes never mix. A ledger that cannot
    be written is said once and then left: training does not depend on it.
    """

    def __init__(self, path: Path | None, descriptor: int | None) -> None:
        self.path, self._descriptor = path, descriptor

    @classmethod
    def open(cls, folder: Path, host: str, attempt: str) -> Ledger:
        """`<folder>/ledger/<attempt>-<host>.jsonl`. attempt: a name that sorts by time, from `attempt_name`."""
        safe = re.sub(r"[^A-Za-z0-9.\-]", "_", host)
        return cls._open(folder / FOLDER / f"{attempt}-{safe}.jsonl")

    @classmethod
    def _open(cls, path: Path) -> Ledger:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return cls(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))
        except OSError as error:
            logger.warning("no ledger: cannot write %s: %s", path, error.strerror)
            return cls(None, None)

    @classmethod
    def of_run(cls, run_folder: Path | None) -> Ledger:
        """The ledger of the attempt this rank belongs to; one that goes nowhere where no supervisor keeps one."""
        try:
            return cls._open(Path((run_folder / _POINTER).read_text(encoding="utf-8"))) if run_folder else cls.none()
        except FileNotFoundError:
            return cls.none()

    @classmethod
    def none(cls) -> Ledger:
        return cls(None, None)

    def point(self, run_folder: Path) -> None:
        """Tell the ranks, which find the folder in MOORAGE_RUN_FOLDER, where the ledger is."""
        pointer = run_folder / _POINTER
        try:
            pointer.unlink(missing_ok=True)
            if self.path is not None:
                pointer.write_text(str(self.path), encoding="utf-8")
        except OSError as error:
            logger.warning("the ranks have no ledger: cannot write %s: %s", pointer, error.strerror)

    def write(self, event: str, **fields: object) -> None:
        """Append {"event", "time" (seconds since 1970), ...}."""
        if self._descriptor is None:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, default=str) + "\n"
        try:
            os.write(self._descriptor, line.encode())
        except OSError as error:
            logger.warning("the ledger ends here: cannot write %s: %s", self.path, error.strerror)
            self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def attempt_name(started: float, attempt: int) -> str:
    """`20261231T235959Z-0`: sorts by time, tells attempts of one second apart."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(started))}-{attempt}"


Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One file: what happened in one attempt on one host, in the order it was written.

    launch: which start of the job it was, from 1, the same on all hosts. attempt: within it, from 0. Attempts are
    ordered by these numbers and never by time: the clocks of two hosts, or of one before and after it was replaced, may
    be far apart.
    """

    host: str
    launch: int
    attempt: int
    events: tuple[Event, ...]

    @property
    def key(self) -> tuple[int, int]:
        return self.launch, self.attempt


def read_ledger(folder: Path) -> list[Record]:
    """The attempts in `<folder>/ledger`, in their order. folder: the one of the checkpoints; it may be absent.

    A line that is torn, or is no event, is passed over: a host can be killed while it writes.
    """
    records = []
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        try:
            data = path.read_bytes()
        except OSError as error:
            logger.warning("the ledger %s cannot be read: %s", path, error.strerror)
            continue
        events = tuple(event for line in data.splitlines() if (event := _event(line)) is not None)
        start: Event = next((event for event in events if event["event"] == "start"), {})
        host = str(start.get("host") or path.stem)
        records.append(
            Record(host=host, launch=_whole(start, "launch"), attempt=_whole(start, "attempt"), events=events)
        )
    return sorted(records, key=lambda record: record.key)


def next_launch(records: list[Record]) -> int:
    """The number of the start of the job that follows those."""
    return max((record.launch for record in records), default=0) + 1


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    moment = event.get("time")
    return event if isinstance(moment, (int, float)) and abs(moment) < _FAR else None


_FAR = 1e12
"""Seconds: no clock shows that, and sums of it would mean nothing."""


def _whole(event: Event, key: str) -> int:
    value = event.get(key)
    return value if type(value) is int and value >= 0 else 0
