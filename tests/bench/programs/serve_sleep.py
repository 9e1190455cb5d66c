"""Takes a known time for every request and needs no CPU for it: a capacity that no machine changes."""

from __future__ import annotations

import os
import time
from typing import Any

SECONDS = float(os.environ.get("BENCH_SECONDS", "0.02"))


def model_fn(folder: str) -> None:
    return None


def predict_fn(data: Any, model: None) -> Any:
    time.sleep(SECONDS)
    return data
