"""What a trial left whose study was stopped or killed: how far it had come, and whether it had ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.rehearsal.events import Event, read_events
from moorage.rehearsal.journal import FILE as EVENTS
from moorage.rehearsal.life import OUTCOME


@dataclass(frozen=True, kw_only=True)
class Left:
    """events: of all its lives, oldest first. status: TrainingJobStatus where it had ended; "" where it goes on, under
    its own name and with its checkpoints. reason: FailureReason. seconds: of training."""

    events: tuple[Event, ...]
    status: str = ""
    reason: str = ""
    seconds: float = 0.0


def take(study: Path, name: str, *, for_good: bool) -> Left:
    """Sets aside, as NAME.cut-1, what a life left that is not the trial's last: its folder is the next one's.

    for_good: it was stopped early or at its limit, and not with the study.
    """
    folder = study / name
    outcome = _outcome(folder / OUTCOME)
    ended = outcome is not None and (outcome["status"] != "Stopped" or for_good)
    if folder.exists() and not ended:
        folder.rename(study / f"{name}.cut-{len(_cut(study, name)) + 1}")
    files = [path / EVENTS for path in (*_cut(study, name), folder)]
    events = tuple(event for path in files if path.is_file() for event in read_events(path))
    if outcome is None or not ended:
        return Left(events=events, status="Stopped" if for_good else "")
    return Left(
        events=events,
        status=str(outcome["status"]),
        reason=str(outcome["failure_reason"]),
        seconds=float(outcome["training_seconds"]),
    )


def _cut(study: Path, name: str) -> list[Path]:
    return sorted(study.glob(f"{name}.cut-*"), key=lambda path: int(path.suffix.removeprefix(".cut-")))


def _outcome(path: Path) -> dict[str, Any] | None:
    """None where it had not ended, or was killed as it wrote that it had."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = {"status", "failure_reason", "training_seconds"}
    return value if isinstance(value, dict) and known <= value.keys() else None
