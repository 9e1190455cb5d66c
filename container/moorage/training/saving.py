"""When a Run saves, what goes into it, and how it comes back."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from moorage.checkpoint.checkpointer import Checkpointer, SaveInfo
from moorage.checkpoint.manifest import Manifest
from moorage.checkpoint.rng import capture_rng, restore_rng
from moorage.checkpoint.state import capture, restore, template
from moorage.contract.ledger import Ledger
from moorage.contract.settings import Settings
from moorage.errors import ConfigError
from moorage.training.feed import Position

log = logging.getLogger("moorage")


class Saver:
    """The checkpoints of one Run. Every method that saves or loads is collective."""

    def __init__(self, checkpointer: Checkpointer, *, settings: Settings, ledger: Ledger | None, rank: int) -> None:
        self._checkpointer, self._settings, self._ledger, self._rank = checkpointer, settings, ledger, rank
        self._tracked: dict[str, Any] = {}
        self._manifest: Manifest | None = None
        self._looked = False
        self._last_save = time.monotonic()
        self._asked = False
        self.strategy = ""

    def track(self, things: Mapping[str, Any]) -> Manifest | None:
        """Add what a checkpoint holds, and restore it from the newest one that verifies.

        Raises ConfigError for a name used twice, CheckpointError when the checkpoint is of something else.
        """
        if twice := sorted(set(things) & set(self._tracked)):
            raise ConfigError(f"run.track: {', '.join(twice)} tracked twice", fix="give each thing a name of its own")
        if not self._looked:
            self._manifest, self._looked = self._checkpointer.newest(), True
        self._tracked.update(things)
        if self._manifest is not None:
            self._load(self._manifest, things)
        return self._manifest

    def _load(self, manifest: Manifest, things: Mapping[str, Any]) -> None:
        started = time.monotonic()
        stored = self._checkpointer.stored(manifest)
        tensors = template(things, stored, manifest.objects)
        self._checkpointer.load(manifest, tensors)
        restore(things, tensors, manifest.objects)
        log.info(
            "resumed %s from step %d (epoch %d, %d samples into it) in %.1f s",
            ", ".join(things), manifest.step, manifest.epoch, manifest.samples, time.monotonic() - started,
        )  # fmt: skip
        if self._ledger:
            self._ledger.write("resume", step=manifest.step, seconds=time.monotonic() - started)

    def restore_rng(self) -> None:
        """Set this rank's random numbers as they were when the checkpoint was taken, if the ranks are the same."""
        if self._manifest is None:
            return
        tensors = capture_rng(self._rank)
        stored = self._checkpointer.stored(self._manifest)
        if all(name in stored for name in tensors):
            self._checkpointer.load(self._manifest, tensors)
            restore_rng(self._rank, tensors)

    def time_is_due(self) -> bool:
        """Whether to ask all ranks for a save by the clock; asks once per save."""
        minutes = self._settings.checkpoint_minutes
        if not minutes or self._asked or time.monotonic() - self._last_save < 60 * minutes:
            return False
        self._asked = True
        return True

    def steps_are_due(self, step: int) -> bool:
        every = self._settings.checkpoint_steps
        return bool(every) and step % every == 0

    def save(self, position: Position, *, run_state: Mapping[str, Any], metrics: Mapping[str, float],
             best: bool = False, wait: bool = False) -> None:  # fmt: skip
        """Save what is tracked; training may go on when this returns, the files are written behind it.

        wait: return when the checkpoint is committed. A save that fails is logged, and leaves the one before it.
        """
        self._asked, self._last_save = False, time.monotonic()
        if not self._tracked:
            if wait:
                log.warning("nothing is tracked, so no checkpoint was saved: call run.track(...)")
            return
        started = time.monotonic()
        tensors, objects = capture(self._tracked)
        tensors |= capture_rng(self._rank)
        info = SaveInfo(
            step=position.step, epoch=position.epoch, samples=position.samples, strategy=self.strategy,
            metrics=dict(metrics), seed=self._settings.seed,
        )  # fmt: skip
        saved = self._checkpointer.save(tensors, info=info, objects={**objects, "run": dict(run_state)}, best=best)
        pause = time.monotonic() - started
        if saved and self._ledger:
            self._ledger.write("save", step=position.step, pause=pause)
        if not saved and best:
            self._checkpointer.mark_best(position.step)
        if wait:
            self._tell(self._checkpointer.wait())
        else:
            self.poll()

    def poll(self) -> None:
        """Say how a save behind the training ended, once it has."""
        self._tell(self._checkpointer.poll())

    def _tell(self, outcome: Any) -> None:
        if outcome is None:
            return
        if outcome.error:
            log.error("checkpoint of step %d was not saved: %s; training goes on", outcome.step, outcome.error)
        else:
            log.info("checkpoint of step %d committed", outcome.step)
        if self._ledger:
            self._ledger.write("saved", step=outcome.step, error=outcome.error or None)

    def load_weights(self, step: int, models: Mapping[str, nn.Module]) -> bool:
        """Put the weights of the checkpoint of `step` into `models`. False when there is no such checkpoint."""
        manifest = self._checkpointer.at(step)
        if manifest is None:
            return False
        tensors = template(models, self._checkpointer.stored(manifest), manifest.objects)
        self._checkpointer.load(manifest, tensors)
        restore(models, tensors, manifest.objects)
        return True

    def close(self) -> None:
        self._tell(self._checkpointer.wait())
        self._checkpointer.close()
