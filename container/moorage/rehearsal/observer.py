"""What a job's log and ledger say while it runs: metrics, as the platform's regexes find them, and steps."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from moorage.contract.ledger import FOLDER

Found = Callable[[str, str, float | None, int | None], None]
"""host, name of the metric, value, step."""

_DONE = ("save", "stopped", "progress")
"""Events of the ledger that tell of steps done."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Observer:
    """Over all attempts; several threads tell it lines.

    matches: name of a metric -> how often its regex matched. highest: the step that the job has reached so far.
    """

    def __init__(self, metrics: Mapping[str, str], step_regex: str, found: Found) -> None:
        self._metrics = {name: re.compile(regex) for name, regex in metrics.items()}
        self._step_regex, self._found = re.compile(step_regex), found
        self._lock = threading.Lock()
        self.matches: Counter[str] = Counter(dict.fromkeys(metrics, 0))
        self.highest: int | None = None
        self.first: int | None = None
        """Step seen first in this attempt."""
        self.step: int | None = None
        """Highest step seen in this attempt."""

    def begin(self) -> None:
        """Another attempt."""
        with self._lock:
            self.first = self.step = None

    def line(self, host: str, text: str) -> None:
        text = _ANSI.sub("", text)
        if found := self._step_regex.search(text):
            self._reached(int(found[1]))
        for name, regex in self._metrics.items():
            if match := regex.search(text):
                with self._lock:
                    self.matches[name] += 1
                self._found(host, name, _number(match[1]), self.step)

    def ledger(self, checkpoints: Path, before: frozenset[str]) -> None:
        """before: the names of the ledger's files that earlier attempts left."""
        for path in (checkpoints / FOLDER).glob("*.jsonl"):
            if path.name not in before:
                for step in _steps(path):
                    self._reached(step)

    def _reached(self, step: int) -> None:
        with self._lock:
            self.first = step if self.first is None else self.first
            self.step = max(step, self.step or 0)
            self.highest = max(step, self.highest or 0)


def ledger_files(checkpoints: Path) -> frozenset[str]:
    return frozenset(path.name for path in (checkpoints / FOLDER).glob("*.jsonl"))


def _steps(path: Path) -> Iterator[int]:
    """That were done, by one attempt's file of the ledger."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return  # gone with its host, or not readable by us: the log says the same
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # torn: it is being written
        if isinstance(event, dict) and event.get("event") in _DONE and type(event.get("step")) is int:
            yield event["step"]


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
