"""Batches for a rank: from the sample where training stopped, and through an evaluation without moving it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from moorage.errors import ConfigError
from moorage.training import data
from moorage.training.ranks import Place
from moorage.training.stopwatch import Stopwatch

log = logging.getLogger("moorage")


@dataclass(kw_only=True)
class Position:
    """Where training is: optimizer steps done in all, the epoch, and the samples consumed of it over all ranks."""

    step: int = 0
    epoch: int = 0
    samples: int = 0


class Feed:
    """Hands out micro-batches and remembers the one in hand.

    prepare: called before each micro-batch with whether the optimizer steps after it. watch: takes the time that the
    program waits for a batch.
    """

    def __init__(
        self,
        position: Position,
        *,
        place: Place,
        device: torch.device,
        seed: int,
        accumulation: int,
        prepare: Callable[[bool], None],
        watch: Stopwatch,
    ) -> None:
        self.position = position
        self._place, self._device, self._seed = place, device, seed
        self._accumulation, self._prepare, self._watch = accumulation, prepare, watch
        self.micro: data.MicroBatch | None = None
        self._open = False
        self._order: dict[str, Any] | None = None
        self._stream: Any = None
        self._stream_state: Any = None
        self._ended = -1
        self._ended_before = -1

    def batches(self, loader: Any) -> Iterator[Any]:
        """This rank's micro-batches of the rest of the epoch, on its device. ConfigError for an epoch gone by."""
        if self._ended == self.position.epoch:
            raise ConfigError(
                f"run.batches has gone through epoch {self._ended} already",
                fix="take the epochs from `for epoch in run.epochs(...)`, and one training loader for each",
            )
        pairs = self._ordered(loader) if isinstance(order_of(loader), data.GlobalOrder) else self._foreign(loader)
        try:
            self._watch.ask()
            for batch, micro in pairs:
                data.seed_all(data.mix(micro.part.seed, 1))
                self.micro, self._open = micro, True
                self._prepare(micro.last)
                on_device = data.to_device(batch, self._device)
                self._watch.deliver()
                yield on_device
                if self._open and micro.last:
                    self.position.samples += micro.num_samples  # the program passed over this batch
                self._watch.ask()
            self._ended = self.position.epoch
        finally:
            self.micro, self._stream = None, None

    def evaluation(self, loader: Any) -> Iterator[Any]:
        """This rank's part of `loader`, once through."""
        order = order_of(loader)
        if isinstance(order, data.GlobalOrder):
            order.epoch, order.start = data.EVALUATION, 0
        for batch in loader:
            yield data.to_device(batch, self._device)

    def close_micro_batch(self) -> data.MicroBatch | None:
        """The micro-batch in hand, which the caller now accounts for; None in a loop that takes none from here."""
        self._open = False
        return self.micro

    def _ordered(self, loader: Any) -> Iterator[tuple[Any, data.MicroBatch]]:
        order = loader.batch_sampler
        self._check_order(order)
        order.epoch, order.start = self.position.epoch, self.position.samples
        return zip(loader, order.plan(order.epoch, order.start), strict=True)

    def _foreign(self, loader: Any) -> Iterator[tuple[Any, data.MicroBatch]]:
        """Batches of a loader that is not ours, each counted as one sample."""
        drawn = self.position.samples
        if self._ended_before == self.position.epoch:
            return
        if hasattr(loader, "load_state_dict"):
            self._stream = loader
            if drawn and self._stream_state is not None:
                loader.load_state_dict(self._stream_state)
            numbered: Iterator[tuple[int, Any]] = enumerate(loader, start=drawn)
        else:
            if drawn:
                log.warning("not a loader of run.loader: passing over %d batches to resume, in whatever order", drawn)
            numbered = ((number, batch) for number, batch in enumerate(loader) if number >= drawn)
        for number, batch in numbered:
            last = (number + 1) % self._accumulation == 0
            seed = data.mix(self._seed, self.position.epoch, number, self._place.rank)
            yield (
                batch,
                data.MicroBatch(
                    part=data.Part(seed, []), weight=1 / self._accumulation, last=last, num_samples=self._accumulation
                ),
            )

    def _check_order(self, order: data.GlobalOrder) -> None:
        now = asdict(order.identity)
        if self._order and self._order != now and self.position.samples:
            changed = ", ".join(
                f"{key} {self._order.get(key)} -> {now[key]}" for key in now if self._order.get(key) != now[key]
            )
            log.warning(
                "the data order changed within epoch %d (%s): samples may be seen twice or not at all",
                self.position.epoch, changed,
            )  # fmt: skip
        self._order = now

    def state(self) -> dict[str, Any]:
        """What the checkpoint holds for all ranks alike."""
        in_stream = self._stream is not None
        return {"order": self._order, "ended": self._ended, "stream": in_stream, "world_size": self._place.world_size}

    def stream_state(self) -> Any:
        """The place of this rank in the iterable dataset it is reading; None when it reads none."""
        return self._stream.state_dict() if self._stream is not None else None

    def restore(self, state: Mapping[str, Any], stream: Any) -> None:
        """Raises ConfigError when a place in a stream was saved on another number of ranks."""
        self._order, self._ended_before, self._stream_state = state["order"], state["ended"], stream
        if state["stream"] and state["world_size"] != self._place.world_size:
            raise ConfigError(
                f"the checkpoint was taken within an iterable dataset on {state['world_size']} ranks, "
                f"now there are {self._place.world_size}",
                why="a place in a stream belongs to one rank",
                fix="resume on the same number of ranks, or use a map-style dataset",
            )


def order_of(loader: Any) -> Any:
    return getattr(loader, "batch_sampler", None)
