"""Instance types that training jobs run on: what one has, and what it costs where a price is given or asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from moorage.cloud.aws import aws_errors, client
from moorage.errors import CloudError, ConfigError

PRICING_REGION = "us-east-1"
"""Where AWS's price list is asked; it has the prices of all regions."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """gpu_memory: bytes of each GPU. memory: bytes."""

    name: str
    gpus: int
    gpu: str
    gpu_memory: int
    vcpus: int
    memory: int


@dataclass(frozen=True, kw_only=True)
class Price:
    """Per hour and instance, in dollars or another currency. spot: None where nobody says."""

    on_demand: float
    spot: float | None = None


def known() -> Mapping[str, Instance]:
    """By name, in the order of the data file."""
    return {
        name: Instance(
            name=name, gpus=one["gpus"], gpu=one["gpu"], gpu_memory=one["gpu_memory_gib"] * 2**30, vcpus=one["vcpus"],
            memory=one["memory_gib"] * 2**30,
        )
        for name, one in _data()["types"].items()
    }  # fmt: skip


def read() -> str:
    """The day on which the data were read."""
    return str(_data()["read"])


def _data() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((resources.files("moorage.cloud") / "instances.json").read_text("utf-8"))
    return found


def parse_prices(texts: Iterable[str]) -> dict[str, Price]:
    """`ml.g5.xlarge=1.41` or `ml.g5.xlarge=1.41:0.55`, the second on Spot. Raises ConfigError."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        on_demand, _, spot = value.partition(":")
        try:
            price = Price(on_demand=float(on_demand), spot=float(spot) if spot else None)
        except ValueError:
            raise ConfigError(f"--price {text!r} is no price", fix="write TYPE=ON_DEMAND[:SPOT], per hour") from None
        if price.on_demand <= 0 or (price.spot is not None and not price.spot > 0):
            raise ConfigError(f"--price {text!r} is not above 0", fix="write TYPE=ON_DEMAND[:SPOT], per hour")
        found[name] = price
    return found


def fetch_prices(names: Iterable[str], region: str, env: Mapping[str, str]) -> dict[str, Price]:
    """On demand, by AWS's price list; that of Spot is not in it. Raises CloudError."""
    pricing = client("pricing", env, PRICING_REGION)
    found = {}
    for name in names:
        filters = [
            {"Type": "TERM_MATCH", "Field": field, "Value": value}
            for field, value in (("instanceName", name), ("regionCode", region), ("component", "Training"))
        ]
        with aws_errors(f"cannot ask for the price of {name}", allow="pricing:GetProducts"):
            answer = pricing.get_products(ServiceCode="AmazonSageMaker", Filters=filters, MaxResults=10)
        price = next(filter(None, map(_dollars, answer["PriceList"])), None)
        if price is not None:
            found[name] = Price(on_demand=price)
    if not found:
        raise CloudError(f"AWS's price list has no training prices for {region}", fix="give them by --price")
    return found


def _dollars(text: str) -> float | None:
    """Of one product of the price list, per hour."""
    terms = json.loads(text).get("terms", {}).get("OnDemand", {})
    for term in terms.values():
        for dimension in term.get("priceDimensions", {}).values():
            if "hrs" in str(dimension.get("unit", "")).lower() or dimension.get("unit") == "Hours":
                value = float(dimension.get("pricePerUnit", {}).get("USD", 0))
                if value > 0:
                    return value
    return None
