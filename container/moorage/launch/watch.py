"""The watch over all ranks, on the first host: does the job hang, and for whom do the others wait?

Every supervisor tells now and then how its ranks are (lookout.py). This is pure: messages in, messages out.

| message | to | says |
|---|---|---|
| pulse | the first host | step, silence and own seconds of each rank of a host that has a Run |
| look | all | take the stacks of your ranks: none of the job's ranks has been heard of for too long |
| looked | the first host | what was seen |
| hung | all | the rank that holds the others up, and what follows: restart, fail, warn, or wait |
| straggler | all | a slow host |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moorage.contract.progress import Activity
from moorage.contract.settings import Settings
from moorage.launch.hang import Seen, all_at_work, judge
from moorage.launch.stragglers import Sample, Stragglers
from moorage.launch.wire import Message

ANSWER_WITHIN = 15.0
"""Seconds in which all hosts have looked at their ranks; one that has not is taken as mute."""

WAIT = 3
"""Times as long before the next look, where all ranks are at work by themselves; twice after each warning."""

NEARLY = 0.8
"""Of its limit, at which a rank is silent enough: hosts look at their ranks one after the other."""


class Watch:
    """Of one job. Times are of one monotonic clock, in seconds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stragglers = Stragglers(settings.straggler_seconds)
        self.restart()

    def restart(self) -> None:
        """An attempt begins: nothing is known of its ranks."""
        self._stragglers.restart()
        self._pulses: dict[str, list[dict[str, Any]]] = {}
        self._seen: dict[str, list[Seen]] = {}
        self._patience = 1
        self.wake_at: float | None = None
        """When hosts that were to look will be waited for no longer; None where none is."""

    def heard(self, host: str, message: Message, now: float) -> list[Message]:
        """What is to be told to all. Raises KeyError, TypeError or ValueError for a message no supervisor sends."""
        if message["type"] == "looked":
            self._seen[host] = [Seen.from_json(one) for one in message["ranks"]]
            return self._judge() if self.wake_at is not None and self._seen.keys() >= self._pulses.keys() else []
        ranks: list[dict[str, Any]] = [dict(one) for one in message["ranks"]]
        for rank in ranks:
            rank["silent"], rank["limit"] = float(rank["silent"]), float(rank["limit"])
        self._pulses[host] = ranks
        training = [rank for rank in ranks if rank["activity"] != Activity.SET_UP]
        slow = self._stragglers.take([_sample(host, rank, now) for rank in training])
        told: list[Message] = [{"type": "straggler", **slow.to_json(), "text": slow.describe()}] if slow else []
        return told + self._look(ranks, now)

    def _look(self, ranks: list[dict[str, Any]], now: float) -> list[Message]:
        if self._settings.hang_seconds == 0 or self.wake_at is not None:
            return []
        if any(rank["silent"] < rank["limit"] / 2 for rank in ranks):
            self._patience = 1
        if not any(rank["silent"] >= self._patience * rank["limit"] for rank in ranks) or not self._is_still():
            return []
        self._seen, self.wake_at = {}, now + ANSWER_WITHIN
        return [{"type": "look"}]

    def _is_still(self) -> bool:
        """Whether no rank of any host has been heard of for about as long as it may be silent."""
        return all(
            rank["silent"] >= NEARLY * self._patience * rank["limit"]
            for ranks in self._pulses.values()
            for rank in ranks
        )

    def tick(self, now: float) -> list[Message]:
        """At `wake_at`, or any time."""
        return self._judge() if self.wake_at is not None and now >= self.wake_at else []

    def _judge(self) -> list[Message]:
        self.wake_at = None
        if not self._is_still():  # it went on while they were looked at
            return []
        ranks = [seen for host in self._pulses for seen in self._seen.get(host) or self._mute(host)]
        failure, action = judge(ranks), self._settings.on_hang
        if self._patience == 1 and all_at_work(ranks):
            action = "wait"
        self._patience *= WAIT if action == "wait" else 2
        return [{"type": "hung", "action": action, "failure": failure.to_json()}]

    def _mute(self, host: str) -> list[Seen]:
        return [
            Seen(
                host=host, rank=int(rank["rank"]), step=int(rank["step"]), activity=int(rank["activity"]),
                silent=rank["silent"], usual=float(rank["usual"]),
            )
            for rank in self._pulses[host]
        ]  # fmt: skip


def _sample(host: str, rank: Mapping[str, Any], now: float) -> Sample:
    return Sample(
        host=host, rank=int(rank["rank"]), time=now, step=int(rank["step"]), input=float(rank["input"]),
        compute=float(rank["compute"]),
    )  # fmt: skip
