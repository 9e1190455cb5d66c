"""What DescribeTrainingJob would say of the job at each moment."""

from __future__ import annotations

import time

from moorage.rehearsal.events import Phase
from moorage.rehearsal.journal import Journal
from moorage.rehearsal.outcome import Transition

INTERNAL = "InternalServerError: We encountered an internal error. Please try again."

_MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data and checkpoints",
    "Training": "Training image download completed. Training in progress.",
    "Interrupted": "The instances were taken away; the job goes on when there are others",
    "Restarting": "The job is started again after an internal error",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "The training job ran longer than MaxRuntimeInSeconds",
    "MaxWaitTimeExceeded": "The training job waited and ran longer than MaxWaitTimeInSeconds",
}
_OVER = {"Completed": "Completed", "Failed": "Failed", "Stopping": "Stopping"}
ENDS = {
    "finished": "Completed",
    "failed": "Failed",
    "fault": "Failed",
    "stop": "Stopped",
    "max-run": "MaxRuntimeExceeded",
    "max-wait": "MaxWaitTimeExceeded",
}
"""Why the last attempt ended -> SecondaryStatus. Running out of time is a stop too."""


class Status:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._done: list[Transition] = []
        self._now: Transition | None = None
        self.status = self.secondary = ""

    def enter(self, secondary: str, message: str = "") -> None:
        """A SecondaryStatus begins."""
        moment = time.time()
        ended = secondary in ENDS.values()
        self.secondary = secondary
        self.status = _OVER.get(secondary, "Stopped" if ended else "InProgress")
        message = message or _MESSAGES[secondary]
        self._close(moment)
        self._now = Transition(status=secondary, start=moment, end=moment if ended else None, message=message)
        self._journal.tell(Phase, status=self.status, secondary=secondary, message=message)

    def _close(self, moment: float) -> None:
        if self._now is not None:
            ended = Transition(
                status=self._now.status, start=self._now.start, end=self._now.end or moment, message=self._now.message
            )
            self._done.append(ended)

    @property
    def transitions(self) -> tuple[Transition, ...]:
        return (*self._done, *([self._now] if self._now else []))
