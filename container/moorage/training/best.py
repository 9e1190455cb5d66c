"""The best of what was reported, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage.contract.metrics import METRIC_NAME
from moorage.contract.settings import Settings
from moorage.errors import ConfigError


@dataclass(kw_only=True)
class Best:
    """The best report so far, and whether training should end early.

    Reports are told apart by their step: after an interruption the same report may be made again, and counts once.
    """

    metric: str = ""
    maximize: bool = True
    patience: int = 0
    value: float | None = None
    step: int = -1
    worse_steps: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, settings: Settings) -> Best:
        """Raises ConfigError when `best` is not max:NAME or min:NAME, or patience has no metric to watch."""
        if not settings.best:
            if settings.patience:
                raise ConfigError(
                    "patience is set, but no metric to watch", fix="set best (moorage_best), as max:val_accuracy"
                )
            return cls()
        mode, _, metric = settings.best.partition(":")
        if mode not in ("max", "min") or not METRIC_NAME.fullmatch(metric):
            raise ConfigError(
                f"best {settings.best!r} names no direction and metric", fix="write max:val_accuracy or min:val_loss"
            )
        return cls(metric=metric, maximize=mode == "max", patience=settings.patience)

    def update(self, step: int, values: Mapping[str, float]) -> bool:
        """Whether this report is the best so far. NaN never is."""
        if not self.metric or self.metric not in values:
            return False
        new = values[self.metric]
        if step == self.step:
            return False
        better = self.value is None or (new > self.value if self.maximize else new < self.value)
        if better and not math.isnan(new):
            self.value, self.step, self.worse_steps = new, step, []
            return True
        if step not in self.worse_steps:
            self.worse_steps.append(step)
        return False

    @property
    def exhausted(self) -> bool:
        return self.patience > 0 and len(self.worse_steps) >= self.patience

    def state(self) -> dict[str, Any]:
        return {"metric": self.metric, "value": self.value, "step": self.step, "worse_steps": self.worse_steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Another metric than the one saved starts afresh."""
        if state.get("metric") == self.metric:
            self.value, self.step = state["value"], state["step"]
            self.worse_steps = list(state["worse_steps"])
