"""What is to be recorded, on disk before anybody sends it: `<checkpoint folder>/tracking/00001.jsonl`, one per attempt.

It lies beside the checkpoints, so it comes back with them on a host that is new.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = "tracking"

log = logging.getLogger("moorage")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of a metric. time: milliseconds since 1970."""

    name: str
    value: float
    step: int
    time: int


class Spool:
    """The points of one run, in the order they were logged; several threads may use it.

    A spool that cannot be written is said once: points then live in memory alone, and are sent from there.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        """folder: of the checkpoints. identity: of the run; empty takes the one that the spool has, or makes one.

        What was logged for another identity, as by the job that this one goes on from, is left alone.
        """
        self.folder = folder / FOLDER
        self._lock = threading.Lock()
        files = sorted(self.folder.glob("*.jsonl"))
        heads = {path: _head(path) for path in files}
        self.identity = identity or next(filter(None, reversed(heads.values())), "") or uuid.uuid4().hex
        lines = [line for path in files if heads[path] == self.identity for line in _lines(path)]
        self._points = [point for line in lines for point in _points(line)]
        self.params, self.tags = _described(lines)
        """What an earlier attempt has said of the run."""
        self._descriptor = self._open(files)

    @staticmethod
    def is_begun(folder: Path, identity: str) -> bool:
        """Whether there is a spool with that identity; with any, where it is empty."""
        heads = {_head(path) for path in (folder / FOLDER).glob("*.jsonl")} - {""}
        return identity in heads if identity else bool(heads)

    def _open(self, files: Iterable[Path]) -> int | None:
        numbers = [int(path.stem) for path in files if re.fullmatch(r"\d+", path.stem)]
        path = self.folder / f"{max(numbers, default=0) + 1:05d}.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            os.write(descriptor, (json.dumps({"identity": self.identity}) + "\n").encode())
        except OSError as error:
            log.warning("what is tracked is not kept on a disk: cannot write %s: %s", path, error.strerror)
            return None
        return descriptor

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Keep `values`: in one write, so that a killed process leaves whole lines."""
        now = int(time.time() * 1000)
        with self._lock:
            self._points += [Point(name=name, value=value, step=step, time=now) for name, value in values.items()]
            self._write({"step": step, "time": now, "metrics": dict(values)})

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Keep what the run is said to be; without secrets."""
        with self._lock:
            self._write({"params": dict(params), "tags": dict(tags)})

    def _write(self, line: Mapping[str, object]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, (json.dumps(line) + "\n").encode())
        except OSError as error:
            log.warning("what is tracked is not kept on a disk any more: %s", error.strerror)
            os.close(self._descriptor)
            self._descriptor = None

    def take(self) -> list[Point]:
        """The points not taken yet."""
        with self._lock:
            taken, self._points = self._points, []
        return taken

    def give_back(self, points: list[Point]) -> None:
        """Those taken that could not be sent; they come before the others."""
        with self._lock:
            self._points = points + self._points

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def _lines(path: Path) -> list[Mapping[str, object]]:
    try:
        texts = path.read_bytes().splitlines()
    except OSError as error:
        log.warning("what was tracked in %s cannot be read: %s", path, error.strerror)
        return []
    lines: list[Mapping[str, object]] = []
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # torn: the host was killed, or the upload cut
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _head(path: Path) -> str:
    return str(next(iter(_lines(path)), {}).get("identity") or "")


def _points(line: Mapping[str, object]) -> list[Point]:
    step, moment, metrics = line.get("step"), line.get("time"), line.get("metrics")
    if not (isinstance(step, int) and isinstance(moment, int) and isinstance(metrics, dict)):
        return []
    return [
        Point(name=str(name), value=float(value), step=step, time=moment)
        for name, value in metrics.items()
        if isinstance(value, int | float)
    ]


def _described(lines: Iterable[Mapping[str, object]]) -> tuple[dict[str, str], dict[str, str]]:
    params, tags = dict[str, str](), dict[str, str]()
    for line in lines:
        for kept, key in ((params, "params"), (tags, "tags")):
            found = line.get(key)
            if isinstance(found, dict):
                kept |= {str(name): str(value) for name, value in found.items()}
    return params, tags
