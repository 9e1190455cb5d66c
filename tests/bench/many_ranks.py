"""Seconds and memory to choose and verify a checkpoint of 4,096 ranks, whose state is cut into 98,304 shards."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence

from bench.harness import OUT, PROGRAMS, ROOT, Row, compare, environment, run

SECONDS, MEGABYTES = 5.0, 500.0


def measure(*, rounds: int = 5) -> list[Row]:
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        env = environment(PYTHONPATH=str(ROOT / "container"))
        run([sys.executable, PROGRAMS / "many_ranks.py", name, "make"], env=env, timeout=120)
        said = [
            run([sys.executable, PROGRAMS / "many_ranks.py", name, "choose"], env=env, timeout=120)
            for _ in range(rounds)
        ]
    taken, memory = zip(*(_figures(text) for text in said), strict=True)
    return [
        limited("4,096 ranks", "s", taken, SECONDS),
        limited("4,096 ranks, peak", "MB", memory, MEGABYTES),
    ]


def limited(name: str, unit: str, values: Sequence[float], limit: float) -> Row:
    """A row against a figure instead of a peer."""
    return compare(name, unit, values, [limit] * len(values), against=f"{limit:g} {unit}", target="<= 1")


def _figures(said: str) -> tuple[float, float]:
    found = re.search(r"chosen in (\S+) s with (\S+) MB", said)
    assert found, said
    return float(found[1]), float(found[2])
