"""When a Run saves, what goes into it, and how it comes back."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from moorage.checkpoint.checkpointer import Checkpointer, Outcome, SaveInfo
from moorage.checkpoint.jsonable import decode, encode, tensor_names
from moorage.checkpoint.manifest import JSON, Manifest
from moorage.checkpoint.metadata import TensorFacts
from moorage.checkpoint.optimizers import with_hooks
from moorage.checkpoint.plan import Tensors
from moorage.checkpoint.rng import capture_rng, restore_rng
from moorage.checkpoint.source import Source
from moorage.checkpoint.state import capture, restore, template
from moorage.contract.ledger import Ledger
from moorage.contract.settings import Settings
from moorage.errors import ConfigError
from moorage.training.cadence import Cadence
from moorage.training.feed import Position
from moorage.training.warm_start import WarmStart

log = logging.getLogger("moorage")


class Saver:
    """The checkpoints of one Run. Every method that saves or loads is collective."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        settings: Settings,
        ledger: Ledger,
        rank: int,
        warm_start: Path | None = None,
    ) -> None:
        self._checkpointer, self._settings, self._ledger, self._rank = checkpointer, settings, ledger, rank
        self._tracked: dict[str, Any] = {}
        self._manifest: Manifest | None = None
        self._elsewhere: Source | None = None
        self._looked = False
        self._warm_start_folder = warm_start
        self._warm_start: WarmStart | None = None
        self._last_save = time.monotonic()
        self._asked = False
        self._under_way: int | None = None
        self._put_off: int | None = None
        self.cadence = Cadence(fixed=settings.checkpoint_seconds, between=3600 * settings.interruption_hours)
        self.kept: int | None = None
        """Step of the newest checkpoint that is committed, as far as this rank knows."""
        self.strategy = ""

    @property
    def tracks_anything(self) -> bool:
        return bool(self._tracked)

    def track(self, things: Mapping[str, Any], *, optional: bool = False) -> Manifest | None:
        """Add what a checkpoint holds, and restore it from the newest one that verifies, which is returned.

        optional: a checkpoint without these things will do; they stay as they are.
        Raises ConfigError for a name used twice, CheckpointError when the checkpoint is of something else.
        """
        if twice := sorted(set(things) & set(self._tracked) | set(things) & RESERVED):
            raise ConfigError(f"run.track: the name {twice[0]!r} is taken", fix="give each thing a name of its own")
        self._tracked.update(things)
        for thing in things.values():
            if isinstance(thing, Optimizer) and (inner := with_hooks(thing)) is not None:
                inner.register_step_pre_hook(self._before_step)
        if not self._looked:
            # What may stay as it is must not be touched by a checkpoint that is found damaged, and then not replaced.
            wanted = None if optional or self._warm_start_folder is not None else partial(self._wanted, things)
            self._manifest, self._looked = self._checkpointer.newest(wanted), True
            self.kept = self._manifest.step if self._manifest else None
            if self._warm_start_folder is not None:
                self._open_warm_start(self._warm_start_folder)
        if self._warm_start is not None:
            return self._warm_start.load(things, self._tracked, optional=optional)
        manifest = self._manifest
        if manifest is None or (optional and not things.keys() <= manifest.objects.keys()):
            return manifest
        started = time.monotonic()
        self._load(manifest, things)
        if not optional:
            self._say_resumed(manifest, things, time.monotonic() - started)
        return manifest

    def _before_step(self, *_: object) -> None:
        self._checkpointer.settle()

    def _open_warm_start(self, folder: Path) -> None:
        if self._manifest is not None:
            log.info("warm_start is not used: the job has a checkpoint of its own, %s", self._manifest.name)
            return
        self._warm_start = WarmStart(folder, self._settings.warm_start_what, self._checkpointer, self._ledger)
        if self._warm_start.other is not None:
            self._manifest, self._elsewhere = self._warm_start.other.manifest, self._warm_start.other.source

    def _load(self, manifest: Manifest, things: Mapping[str, Any]) -> None:
        ahead = self._checkpointer.ahead(manifest)
        tensors = self._wanted(things, manifest, self._checkpointer.stored(manifest)) if ahead is None else ahead
        self._checkpointer.load(manifest, {} if ahead is not None else tensors)
        restore(things, tensors, manifest.objects, among=self._tracked)

    def _wanted(
        self, things: Mapping[str, Any], manifest: Manifest, stored: Mapping[str, TensorFacts]
    ) -> Mapping[str, torch.Tensor]:
        return template(things, stored, manifest.objects, among=self._tracked)

    def _say_resumed(self, manifest: Manifest, things: Mapping[str, Any], seconds: float) -> None:
        log.info(
            "resumed %s at step %d (epoch %d, %d samples into it), loaded in %.2f s",
            ", ".join(things), manifest.step, manifest.epoch, manifest.samples, seconds,
        )  # fmt: skip
        self._ledger.write("resume", step=manifest.step, world_size=manifest.world_size, seconds=round(seconds, 3))

    def run_state(self, manifest: Manifest) -> Any:
        """What the Run itself had saved."""
        state = decode(manifest.objects["run"], dict[str, torch.Tensor]().__getitem__)
        # The best checkpoint of another job is not among this one's.
        return state if self._elsewhere is None else {**state, "best": {}}

    def restore_rank(self) -> Any:
        """Set this rank's random numbers as they were, where the checkpoint has them; returns its stream's state."""
        if self._manifest is None:
            return None
        stored = self._checkpointer.stored(self._manifest, self._elsewhere)
        same_ranks = len(self._manifest.per_rank) == self._manifest.world_size
        stream = (
            self._manifest.per_rank[self._rank] if same_ranks and self._rank < len(self._manifest.per_rank) else None
        )
        names = [*(name for name in capture_rng(self._rank) if name in stored), *tensor_names(stream)]
        tensors = {name: torch.empty(stored[name].shape, dtype=stored[name].dtype) for name in names}
        self._checkpointer.load(self._manifest, tensors, self._elsewhere)
        restore_rng(self._rank, tensors)
        return decode(stream, tensors.__getitem__)

    def time_is_due(self) -> bool:
        """Whether to ask all ranks for a save by the clock; asks once per save."""
        if self._asked or time.monotonic() - self._last_save < self.cadence.interval:
            return False
        if self._under_way is not None:
            if self._put_off != self._under_way:
                log.info("the save of step %d is still under way: the next, now due, comes after it", self._under_way)
            self._put_off = self._under_way
            return False
        self._asked = True
        return True

    def steps_are_due(self, step: int) -> bool:
        every = self._settings.checkpoint_steps
        return bool(every) and step % every == 0

    def save(
        self,
        position: Position,
        *,
        run_state: Mapping[str, Any],
        stream: Any = None,
        metrics: Mapping[str, float],
        best: bool = False,
        wait: bool = False,
    ) -> None:
        """Save what is tracked. Training may go on when this returns: the files are written behind it.

        stream: the state of this rank's iterable loader. wait: return when the checkpoint is committed. A save that
        fails is logged, and leaves the one before it.
        """
        self._asked, self._last_save = False, time.monotonic()
        began = self._last_save
        if not self._tracked:
            log.warning("no checkpoint is saved: nothing is tracked; call run.track(model=..., optimizer=...)")
            return
        tensors, objects, per_rank = self._state(run_state, stream)
        info = SaveInfo(
            step=position.step, epoch=position.epoch, samples=position.samples, strategy=self.strategy,
            metrics=dict(metrics), seed=self._settings.seed,
        )  # fmt: skip
        overlaps = self._settings.staging == "overlap" and not wait
        saved = self._checkpointer.save(
            tensors, info=info, objects=objects, per_rank=per_rank, best=best,
            steady=tensors.steady if overlaps else frozenset(),
        )  # fmt: skip
        if saved:
            self._under_way = position.step
        elif best:
            self._checkpointer.mark_best(position.step)
        if wait:
            self._tell(self._checkpointer.wait())
        self._ledger.write("saving", step=position.step, blocked=round(time.monotonic() - began, 4))
        self.poll()

    def _state(self, run_state: Mapping[str, Any], stream: Any) -> tuple[Tensors, dict[str, JSON], JSON]:
        tensors, objects = capture(self._tracked)
        tensors.update(capture_rng(self._rank))
        per_rank = encode(stream, f"stream/{self._rank:05d}", tensors)
        return tensors, {**objects, "run": encode(run_state, "run", tensors)}, per_rank

    def prepare(self, run_state: Mapping[str, Any], stream: Any) -> None:
        """Plan the saves and get the memory for them, once the optimizers have a state, so that the first save pauses
        training no longer than those after it."""
        if self._tracked:
            self._checkpointer.prepare(self._state(run_state, stream)[0])
        self._last_save = time.monotonic()

    def stepped(self) -> None:
        """A step is done, and no save has begun since."""
        self.cadence.slowdown.step(time.monotonic(), saving=self._under_way is not None)
        self.poll()

    def poll(self) -> None:
        """Say how a save behind the training ended, once it has."""
        while outcome := self._checkpointer.poll():
            self._tell(outcome)

    def drain(self, deadline: float) -> bool:
        """Wait for a save under way, until `deadline` at most, as time.monotonic(). Whether none is any more."""
        self.poll()
        while self._under_way is not None and time.monotonic() < deadline:
            time.sleep(0.01)
            self.poll()
        return self._under_way is None

    def _tell(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        if outcome.step == self._under_way:
            self._under_way = None
        facts = {"step": outcome.step, "pause": round(outcome.pause, 4), "seconds": round(outcome.seconds, 3)}
        if outcome.committed:
            log.info("saved step %d: paused %.3f s, committed in %.2f s, %.1f MB",
                     outcome.step, outcome.pause, outcome.seconds, outcome.size / 1e6)  # fmt: skip
            self._ledger.write("save", **facts, bytes=outcome.size)
            self.kept = outcome.step
            why = self.cadence.measured(pause=outcome.pause, seconds=outcome.seconds)
            if why and self._rank == 0:
                log.info("%s", why)
                self._ledger.write("cadence", seconds=round(self.cadence.interval, 1), why=why)
        else:
            log.error("step %d was not saved: %s; the checkpoint before it stays, training goes on",
                      outcome.step, outcome.error)  # fmt: skip
            self._ledger.write("save-failed", **facts, error=outcome.error)
            if outcome.changed and math.isfinite(self.cadence.interval):
                self._last_save -= self.cadence.interval

    def load_weights(self, step: int, models: Mapping[str, torch.nn.Module]) -> bool:
        """Put the weights of the checkpoint of `step` into `models`. False when that checkpoint is gone."""
        manifest = self._checkpointer.at(step)
        if manifest is not None:
            self._load(manifest, models)
        return manifest is not None

    def close(self) -> None:
        """Wait for a save under way."""
        self._tell(self._checkpointer.wait())
        self.poll()
        self._checkpointer.close()


RESERVED = frozenset({"run", "rng", "stream"})
"""Names in a checkpoint that are not the program's."""
