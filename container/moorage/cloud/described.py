"""A training job as DescribeTrainingJob tells it, in what its owner wants to know. Pure: nothing is asked here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from moorage.cloud.reasons import Reason, reason_of
from moorage.rehearsal.report_text import counted, named, number_text, percent_text, seconds_text

OVER = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One secondary status. ended: None while it lasts."""

    status: str
    started: datetime
    ended: datetime | None
    message: str

    def seconds(self, now: datetime) -> float:
        return ((self.ended or now) - self.started).total_seconds()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The newest one that is committed in S3. saved: when its manifest was written there."""

    step: int
    saved: datetime


@dataclass(frozen=True, kw_only=True)
class Described:
    """answer: of DescribeTrainingJob. now: the moment it was given."""

    answer: Mapping[str, Any]
    now: datetime
    checkpoint: Checkpoint | None = None

    @property
    def name(self) -> str:
        return str(self.answer["TrainingJobName"])

    @property
    def status(self) -> str:
        return str(self.answer["TrainingJobStatus"])

    @property
    def secondary(self) -> str:
        return str(self.answer.get("SecondaryStatus", ""))

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    @property
    def is_spot(self) -> bool:
        return bool(self.answer.get("EnableManagedSpotTraining"))

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(
            Phase(
                status=one["Status"], started=one["StartTime"], ended=one.get("EndTime"),
                message=one.get("StatusMessage", ""),
            )
            for one in self.answer.get("SecondaryStatusTransitions", ())
        )  # fmt: skip

    @property
    def interruptions(self) -> int:
        return sum(phase.status == "Interrupted" for phase in self.phases)

    @property
    def instances(self) -> str:
        """`2 x ml.g5.2xlarge, Spot`."""
        parts = [f"{one.get('InstanceCount', 1)} x {one.get('InstanceType', 'unknown')}" for one in self.groups]
        return ", ".join([*parts, *(["Spot"] if self.is_spot else [])])

    @property
    def hosts(self) -> int:
        return sum(int(one.get("InstanceCount", 1)) for one in self.groups)

    @property
    def groups(self) -> list[Mapping[str, Any]]:
        """InstanceType and InstanceCount of each group; of a job without groups, of all."""
        resources = self.answer.get("ResourceConfig", {})
        return resources.get("InstanceGroups") or [resources]

    @property
    def training_seconds(self) -> float | None:
        """As AWS says; while it does not say yet, since training began."""
        told = self.answer.get("TrainingTimeInSeconds")
        if told is not None:
            return float(told)
        started = self.answer.get("TrainingStartTime")
        ended = self.answer.get("TrainingEndTime") or self.now
        return (ended - started).total_seconds() if started else None

    @property
    def billable_seconds(self) -> float | None:
        told = self.answer.get("BillableTimeInSeconds")
        return None if told is None else float(told)

    @property
    def savings(self) -> float | None:
        """0 to 1, by the formula of AWS's documentation: 1 - BillableTimeInSeconds / TrainingTimeInSeconds."""
        training, billable = self.answer.get("TrainingTimeInSeconds"), self.billable_seconds
        return 1 - billable / training if self.is_spot and training and billable is not None else None

    @property
    def checkpoints(self) -> str | None:
        return (self.answer.get("CheckpointConfig") or {}).get("S3Uri")

    @property
    def reason(self) -> Reason | None:
        return reason_of(str(self.answer.get("FailureReason", "")), self.secondary)

    @property
    def lines(self) -> Iterator[str]:
        both = self.status if self.secondary in (self.status, "") else f"{self.status}, {self.secondary}"
        yield f"{self.name}: {both}"
        yield ""
        yield from self._table()
        yield ""
        yield from named(self._facts())
        if self.reason is not None:
            yield ""
            yield from self.reason.lines

    def _table(self) -> Iterator[str]:
        width = max((len(phase.status) for phase in self.phases), default=0)
        for phase in self.phases:
            took = seconds_text(phase.seconds(self.now))
            so_far = "" if phase.ended or self.is_over else " so far"
            yield (
                f"  {clock(phase.started)}  {phase.status.ljust(width)}  {(took + so_far).ljust(18)}  {phase.message}"
            ).rstrip()

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "instances", self.instances
        if self.training_seconds is not None:
            billed = "" if self.billable_seconds is None else f", billable {seconds_text(self.billable_seconds)}"
            saved = "" if self.savings is None else f": {percent_text(self.savings)} saved by Spot"
            yield "training", f"{seconds_text(self.training_seconds)}{billed}{saved}"
        if self.interruptions:
            yield "Spot", f"{counted(self.interruptions, 'interruption')}"
        for one in self.answer.get("FinalMetricDataList", ()):
            yield one["MetricName"], f"{number_text(one['Value'])}, {self._ago(one['Timestamp'])}"
        if self.checkpoint is not None:
            yield "checkpoint", f"step {self.checkpoint.step}, saved {self._ago(self.checkpoint.saved)}"
        if self.checkpoints:
            yield "checkpoints", self.checkpoints
        if self.status == "Completed" and self.model:
            yield "model", self.model

    @property
    def model(self) -> str | None:
        return (self.answer.get("ModelArtifacts") or {}).get("S3ModelArtifacts")

    def _ago(self, moment: datetime) -> str:
        if self.is_over:
            return f"at {clock(moment)}"
        return f"{seconds_text(max(0.0, (self.now - moment).total_seconds()))} ago"

    def to_json(self) -> dict[str, Any]:
        metrics = {one["MetricName"]: one["Value"] for one in self.answer.get("FinalMetricDataList", ())}
        phases = [
            {
                "status": phase.status, "started": iso(phase.started), "ended": phase.ended and iso(phase.ended),
                "seconds": phase.seconds(self.now), "message": phase.message,
            }
            for phase in self.phases
        ]  # fmt: skip
        return {
            "name": self.name, "arn": self.answer.get("TrainingJobArn"), "status": self.status,
            "secondary": self.secondary, "instances": self.instances, "spot": self.is_spot, "phases": phases,
            "training_seconds": self.training_seconds, "billable_seconds": self.billable_seconds,
            "savings": self.savings, "interruptions": self.interruptions, "metrics": metrics,
            "checkpoints": self.checkpoints, "model": self.model,
            "checkpoint": self.checkpoint
            and {"step": self.checkpoint.step, "saved": iso(self.checkpoint.saved),
                 "age_seconds": (self.now - self.checkpoint.saved).total_seconds()},
            "reason": self.reason and asdict(self.reason),
        }  # fmt: skip


def committed_step(key: str) -> int | None:
    """`.../step-00000120/manifest.json` -> 120. None for another key."""
    found = re.search(r"(?:^|/)step-(\d+)/(?:manifest\.json)?$", key)
    return int(found[1]) if found else None


def clock(moment: datetime) -> str:
    """In UTC, as CloudWatch and the ledger have it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()
