"""What came of a rehearsal: what DescribeTrainingJob would say, and what only a rehearsal can know."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One of SecondaryStatusTransitions. Times in seconds since 1970; end: None while it lasts."""

    status: str
    start: float
    end: float | None
    message: str


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the containers. number: from 1. ended_by: finished, failed, interruption, fault, stop, max-run,
    max-wait.

    started, ended: seconds since 1970. first, last: the steps seen in it. grace_used: seconds from SIGTERM to the end
    of the last container, None where none was sent. codes: exit code of each host, 137 where it was killed.
    uploaded, cut: files that the checkpoint agents put into the prefix, and those whose upload was broken off.
    """

    number: int
    started: float
    ended: float
    ended_by: str
    first: int | None
    last: int | None
    grace_used: float | None
    codes: Mapping[str, int]
    uploaded: int = 0
    cut: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """status: Completed, Failed or Stopped; secondary: its SecondaryStatus, such as MaxRuntimeExceeded.

    failure_reason: as DescribeTrainingJob gives it, "" where there is none. exit_codes: of the last attempt's hosts.
    training_seconds: TrainingTimeInSeconds; billable_seconds: those in which there were instances.
    interruptions, faults: how many were made, of how many that were asked for.
    metrics: name -> how often its regex matched. goodput: as contract.goodput has it, None without a ledger.
    model, output: the archives; None where the folder was empty.
    folder: with events.jsonl, outcome.json, hosts/<host>/ and what else the run left.
    """

    name: str
    status: str
    secondary: str
    transitions: tuple[Transition, ...]
    failure_reason: str
    exit_codes: Mapping[str, int]
    attempts: tuple[Attempt, ...]
    training_seconds: float
    billable_seconds: float
    interruptions: tuple[int, int]
    faults: tuple[int, int]
    metrics: Mapping[str, int]
    goodput: Mapping[str, Any] | None
    model: Path | None
    output: Path | None
    folder: Path
    warnings: tuple[str, ...] = field(default=())

    @property
    def completed(self) -> bool:
        return self.status == "Completed"

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=_plain))
        return value


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
