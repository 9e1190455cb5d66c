"""`moorage plan`: what a model needs, what it fits on, how long that takes, what it costs, and what an interruption
would lose. Pure arithmetic, of which each sum is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moorage.cloud.instances import Instance, Price
from moorage.rehearsal.report_text import money_text, number_text, percent_text, seconds_text
from moorage.training.cadence import LEAST_SECONDS, MOST_SECONDS, SAVES_APART, optimum
from moorage.training.strategy import Choice, ModelSize, choose

HOSTS = (1, 2, 4, 8, 16)
"""Numbers of instances that are tried."""

WRITES = 1e9
"""Bytes per second that a host writes of a checkpoint, assumed."""

SLOWED = 0.1
"""Share of a save's time that training loses, assumed as `train` does before it has measured it."""

START_SECONDS = 300.0
"""From an interruption to training again: instances, image, data. Assumed."""

SPOT_SAVES = 0.5
"""Of the price on demand, assumed where no price on Spot is given: AWS says up to 0.9."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """samples: in all epochs. rate: samples per second that one device does; None where it is not given."""

    samples: float | None = None
    rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Option:
    """One instance type, and the fewest of them that the model fits on; hosts is 0 where none of HOSTS do.

    hours: of training alone. cost: on demand, and on Spot, its interruptions included.
    """

    instance: Instance
    hosts: int
    choice: Choice
    hours: float | None = None
    on_demand: float | None = None
    spot: float | None = None

    @property
    def devices(self) -> int:
        return self.hosts * self.instance.gpus


@dataclass(frozen=True, kw_only=True)
class Saves:
    """size: bytes of a checkpoint. seconds: that a save takes. interval: between two. loss: share of the time that
    saves and interruptions cost, the starts after them included.
    """

    size: int
    seconds: float
    cost: float
    interval: float
    loss: float


def options(
    size: ModelSize,
    instances: Sequence[Instance],
    *,
    precision: str,
    optimizer_states: int,
    work: Work,
    prices: Mapping[str, Price],
    between: float,
) -> list[Option]:
    """Those that fit first; the cheapest first where prices tell, else those with the fewest devices and hosts.

    between: seconds between interruptions.
    """
    found = [
        _option(
            size, one, precision=precision, optimizer_states=optimizer_states, work=work, price=prices.get(one.name),
            between=between,
        )
        for one in instances
    ]  # fmt: skip
    return sorted(
        found,
        key=lambda one: (not one.hosts, one.on_demand or float("inf"), one.devices, one.hosts, one.instance.gpu_memory),
    )


def _option(
    size: ModelSize, instance: Instance, *, precision: str, optimizer_states: int, work: Work, price: Price | None,
    between: float,
) -> Option:  # fmt: skip
    for hosts in HOSTS:
        choice = choose(
            "auto", size, precision=precision, device_memory=instance.gpu_memory, world_size=hosts * instance.gpus,
            ranks_per_host=instance.gpus, optimizer_states=optimizer_states,
        )  # fmt: skip
        if choice.fits:
            hours = _hours(work, hosts * instance.gpus)
            lost = saves(size, optimizer_states, between, hosts).loss
            return Option(
                instance=instance, hosts=hosts, choice=choice, hours=hours,
                on_demand=_cost(hours, hosts, price.on_demand if price else None),
                spot=_cost(hours and hours / max(1e-9, 1 - lost), hosts, price.spot if price else None),
            )  # fmt: skip
    return Option(instance=instance, hosts=0, choice=choice)


def _hours(work: Work, devices: int) -> float | None:
    if work.samples is None or work.rate is None:
        return None
    return work.samples / (work.rate * devices) / 3600


def _cost(hours: float | None, hosts: int, price: float | None) -> float | None:
    return None if hours is None or price is None else hours * hosts * price


def saves(size: ModelSize, optimizer_states: int, between: float, hosts: int) -> Saves:
    """By Young's and Daly's rule, as `train` chooses it; what is assumed here is measured there."""
    trained = size.param_bytes * size.trainable_params // max(1, size.num_params)
    total = size.param_bytes + trained * optimizer_states
    seconds = total / hosts / WRITES
    cost = SLOWED * seconds
    best = optimum(cost, between) if cost else LEAST_SECONDS
    interval = max(min(LEAST_SECONDS, between / 20), SAVES_APART * seconds, min(MOST_SECONDS, best))
    # What is saved every `interval` loses half of it, and the save that was not done yet, at each interruption.
    loss = cost / interval + (interval / 2 + seconds + START_SECONDS) / between
    return Saves(size=total, seconds=seconds, cost=cost, interval=interval, loss=min(loss, 1.0))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of it. name: of the model, for the first line."""

    name: str
    size: ModelSize
    precision: str
    options: tuple[Option, ...]
    saves: Saves
    between: float
    work: Work
    read: str

    @property
    def best(self) -> Option | None:
        """The first of those that fit."""
        return next((one for one in self.options if one.hosts), None)

    @property
    def lines(self) -> Iterator[str]:
        size = self.size
        trained = (
            "" if size.trainable_params == size.num_params else f", {amount(size.trainable_params)} of them trained"
        )
        kept = f"{_bytes(size.param_bytes)}, in {self.precision}"
        yield f"{self.name}: {amount(size.num_params)} parameters{trained}, {kept}"
        yield ""
        yield from self._table()
        if self.work.samples is not None and self.work.rate is not None:
            done = f"{amount(self.work.samples)} samples at {number_text(self.work.rate)} per second and device"
            yield f"  time: {done}, whichever it is; what hosts lose to each other is not in it"
        best = self.best
        if best is not None:
            yield ""
            yield f"{best.hosts} x {best.instance.name}, {best.choice.why}"
        yield ""
        yield self._checkpoints()
        yield ""
        yield from advice(self, best)

    def _table(self) -> Iterator[str]:
        rows = [("instances", "GPUs", "strategy", "time", "on demand", "Spot")]
        for one in self.options:
            if not one.hosts:
                rows.append((f"- x {one.instance.name}", _gpus(one), f"does not fit on {HOSTS[-1]}", "", "", ""))
                continue
            rows.append((
                f"{one.hosts} x {one.instance.name}", _gpus(one), one.choice.strategy,
                "" if one.hours is None else seconds_text(3600 * one.hours),
                "" if one.on_demand is None else money_text(one.on_demand),
                "" if one.spot is None else money_text(one.spot),
            ))  # fmt: skip
        used = [column for column in range(6) if any(row[column] for row in rows[1:])]
        widths = {column: max(len(row[column]) for row in rows) for column in used}
        for row in rows:
            yield ("  " + "  ".join(row[column].ljust(widths[column]) for column in used)).rstrip()

    def _checkpoints(self) -> str:
        found = self.saves
        written = f"is written in {seconds_text(found.seconds)} at {WRITES / 1e9:g} GB/s per host"
        return (
            f"a checkpoint has {_bytes(found.size)}, {written}, and is worth making every "
            f"{seconds_text(found.interval)}: with an interruption every {number_text(self.between / 3600)} h, "
            f"{percent_text(found.loss, 1)} of the time goes into saves, what is done again, and "
            f"{seconds_text(START_SECONDS)} for each new start"
        )

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name, "precision": self.precision,
            "parameters": self.size.num_params, "bytes": self.size.param_bytes, "trainable": self.size.trainable_params,
            "options": [
                {
                    "instance": one.instance.name, "gpus": one.instance.gpus, "gpu": one.instance.gpu,
                    "hosts": one.hosts, "fits": bool(one.hosts), "strategy": one.choice.strategy,
                    "why": one.choice.why, "hours": one.hours,
                    "on_demand": one.on_demand, "spot": one.spot,
                }
                for one in self.options
            ],
            "checkpoint": {
                "bytes": self.saves.size, "seconds": self.saves.seconds, "interval": self.saves.interval,
                "loss": self.saves.loss,
            },
            "advice": list(advice(self, self.best)),
            "instances_read": self.read,
        }  # fmt: skip


def advice(plan: Plan, best: Option | None) -> Iterator[str]:
    """Spot, warm pool, managed fine-tuning: a line each, with the reason."""
    loss = plan.saves.loss
    hours = best.hours if best else None
    if best is not None and best.on_demand is not None and best.spot is not None:
        saved = 1 - best.spot / best.on_demand
        verdict = "right" if saved > 0 else "wrong"
        yield f"Spot: {verdict}, {money_text(best.spot)} against {money_text(best.on_demand)}, interruptions included"
    elif loss < SPOT_SAVES:
        yield (
            f"Spot: right, if it costs less than {percent_text(1 - loss)} of the price on demand: interruptions take "
            f"{percent_text(loss, 1)}"
        )
    else:
        yield f"Spot: wrong, interruptions would take {percent_text(loss)} of the time"
    if hours is not None and hours * 3600 < 6 * START_SECONDS:
        yield (
            f"warm pool: right for jobs one after another, as each trains for {seconds_text(3600 * hours)} only and "
            f"waits some {seconds_text(START_SECONDS)} to start; it does not go with Spot"
        )
    else:
        start = seconds_text(START_SECONDS)
        yield f"warm pool: no, {start} of start-up is little beside the training, and it rules out Spot"
    share = plan.size.trainable_params / max(1, plan.size.num_params)
    if plan.size.num_params >= 1e9 and share < 0.05:
        yield (
            f"a managed fine-tuning service: look at it first, as only {percent_text(share, 1)} is trained: for a "
            "public base model it has no cluster to run, and is billed by the token"
        )
    else:
        yield (
            f"a managed fine-tuning service: no, as {percent_text(share)} of the model is trained"
            if plan.size.num_params >= 1e9
            else "a managed fine-tuning service: no, they are for large public base models"
        )


def amount(count: float) -> str:
    """`7.0 billion`, `86 million`, `9,962`."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,.0f}"


def _gpus(one: Option) -> str:
    number = (one.hosts or 1) * one.instance.gpus
    return f"{number} x {one.instance.gpu} {one.instance.gpu_memory / 2**30:.0f} GiB"


def _bytes(count: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"
