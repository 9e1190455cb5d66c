"""Loaders of a Run: DataLoaders in our order, whose workers outlive a stop and draw seeded random numbers."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from moorage.errors import ConfigError
from moorage.training.data import GlobalOrder, Part, seed_all
from moorage.training.ranks import Place

log = logging.getLogger("moorage")


def build_loader(
    dataset: Any,
    batch_size: int,
    *,
    shuffle: bool,
    drop_last: bool,
    options: dict[str, Any],
    seed: int,
    accumulation: int,
    place: Place,
    device: torch.device,
) -> Any:
    """A loader of this rank's part of `dataset`, as Run.loader describes it. Raises ConfigError."""
    shares = place.world_size * accumulation
    if batch_size < shares:
        raise ConfigError(
            f"batch_size {batch_size} is less than one sample for each of {place.world_size} ranks "
            f"x {accumulation} micro-batches",
            why="batch_size counts the samples of all ranks",
            fix=f"use {shares} or more",
        )
    if _is_iterable(dataset):
        return make_iterable_loader(dataset, batch_size=batch_size // shares, options=options)
    if batch_size % shares:
        log.info(
            "batch_size %d is not divisible by %d ranks x %d micro-batches: shares differ by one sample, and each "
            "loss is weighted by its share, so that the gradient is that of the whole batch",
            batch_size, place.world_size, accumulation,
        )  # fmt: skip
    if len(dataset) < (batch_size if drop_last else 1):
        raise ConfigError(
            f"the dataset holds {len(dataset)} samples, less than one batch of {batch_size}",
            fix="check the channel it is read from, lower batch_size, or use drop_last=False",
        )
    order = GlobalOrder(
        len(dataset), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed,
        rank=place.rank, world_size=place.world_size, accumulation=accumulation,
    )  # fmt: skip
    return make_loader(dataset, order, device=device, options=options)


class _Seeded(Dataset[Any]):
    """A dataset whose random numbers depend on the sample's place in the order alone."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, part: Part) -> list[Any]:
        seed_all(part.seed)
        fetch = getattr(self.dataset, "__getitems__", None)
        return fetch(part.indices) if fetch else [self.dataset[index] for index in part.indices]

    def __len__(self) -> int:
        return len(self.dataset)


class _Worker:
    """What a DataLoader worker does first: leave a SIGTERM to the whole process group to its rank."""

    def __init__(self, user_init: Any) -> None:
        self.user_init = user_init

    def __call__(self, worker: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.user_init:
            self.user_init(worker)


def _end_workers() -> None:
    """At the end of a rank. multiprocessing would end its daemons by SIGTERM, which ours ignore, and wait for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's own handler takes their end for a failure
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _with_workers(options: dict[str, Any]) -> dict[str, Any]:
    """DataLoader's options, with ours for its workers."""
    if not options.get("num_workers"):
        return dict(options)
    atexit.unregister(_end_workers)
    atexit.register(_end_workers)  # last in is first out: before multiprocessing's own
    return {**options, "worker_init_fn": _Worker(options.get("worker_init_fn"))}


def make_loader(dataset: Any, order: GlobalOrder, *, device: torch.device, options: dict[str, Any]) -> DataLoader[Any]:
    """A DataLoader over `dataset` in `order`. `options` go to DataLoader as they are."""
    defaults = {"pin_memory": device.type == "cuda", "persistent_workers": bool(options.get("num_workers"))}
    # A generator of its own: making an iterator draws from it, and must not move the training's random numbers.
    generator = torch.Generator().manual_seed(order.seed)
    return DataLoader(_Seeded(dataset), batch_sampler=order, generator=generator, **defaults | _with_workers(options))


def make_iterable_loader(dataset: Any, *, batch_size: int, options: dict[str, Any]) -> Any:
    """A torchdata StatefulDataLoader over an iterable dataset.

    Its state belongs to one rank with its workers: it resumes on the same number of ranks and workers only, and each
    rank has to draw its own part of the stream. Raises ConfigError when torchdata is missing.
    """
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError:
        raise ConfigError(
            "an iterable dataset needs torchdata", why="it is not installed", fix="pip install 'moorage[iterable]'"
        ) from None
    with warnings.catch_warnings():
        # torchdata 0.11 calls a function that torch 2.13 has deprecated.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        return StatefulDataLoader(dataset, batch_size=batch_size, **_with_workers(options))


def _is_iterable(dataset: Any) -> bool:
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
