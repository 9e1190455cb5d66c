"""What a job cost on Spot, and what it would have cost on demand, for prices given: none is known here."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Dollars, or any currency, per hour and instance. Raises ConfigError for what is no price."""

    on_demand: float
    spot: float

    def __post_init__(self) -> None:
        for name, value in (("on-demand", self.on_demand), ("spot", self.spot)):
            if not 0 < value < 1e6:
                raise ConfigError(
                    f"the {name} price is {value:g}",
                    why="prices are per hour and instance, and greater than 0",
                    fix="give both, as your region's price list has them",
                )


@dataclass(frozen=True, kw_only=True)
class Bill:
    """Of a job of the platform. seconds: BillableTimeInSeconds, in which the discount of Spot is already. per_hour: of
    all its instances on demand, None where no price is known."""

    seconds: float
    instances: int
    per_hour: float | None

    @property
    def cost(self) -> float | None:
        return None if self.per_hour is None else self.per_hour * self.seconds / 3600


@dataclass(frozen=True, kw_only=True)
class Savings:
    """billable: seconds in which there were instances. uninterrupted: seconds the job would have taken left alone,
    without what was done again and without all starts and ends but one. hosts: instances.
    """

    prices: Prices
    hosts: int
    billable: float
    uninterrupted: float

    @property
    def on_demand_cost(self) -> float:
        return self.prices.on_demand * self.hosts * self.uninterrupted / 3600

    @property
    def spot_cost(self) -> float:
        return self.prices.spot * self.hosts * self.billable / 3600

    @property
    def saved(self) -> float:
        """Negative where the interruptions cost more than Spot saves."""
        return self.on_demand_cost - self.spot_cost

    @property
    def share(self) -> float:
        return self.saved / self.on_demand_cost if self.on_demand_cost else 0.0

    @property
    def interruptions_cost(self) -> float:
        """Spent on Spot for time that a job left alone would not have needed."""
        return max(0.0, self.prices.spot * self.hosts * (self.billable - self.uninterrupted) / 3600)

    @property
    def break_even(self) -> float:
        """Billable seconds up to which Spot is cheaper."""
        return self.uninterrupted * self.prices.on_demand / self.prices.spot

    def to_json(self) -> dict[str, float]:
        return {
            "on_demand_per_hour": self.prices.on_demand,
            "spot_per_hour": self.prices.spot,
            "hosts": self.hosts,
            "billable_seconds": round(self.billable, 3),
            "uninterrupted_seconds": round(self.uninterrupted, 3),
            "on_demand_cost": self.on_demand_cost,
            "spot_cost": self.spot_cost,
            "saved": self.saved,
            "saved_share": round(self.share, 4),
            "interruptions_cost": self.interruptions_cost,
            "break_even_seconds": round(self.break_even, 3),
        }
