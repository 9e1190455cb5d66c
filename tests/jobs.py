"""A job folder as the platform lays it out, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moorage.contract.config import JobConfig

RESOURCE = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "lo"}


class Job:
    """The folder of one job; `config()` reads it as `train` would."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.env: dict[str, str] = {"SAGEMAKER_BASE_DIR": str(base)}
        self.write("resourceconfig", RESOURCE)

    def write(self, name: str, value: Any) -> Path:
        """input/config/<name>.json; text is written as it is."""
        text = value if isinstance(value, str) else json.dumps(value)
        return self.file(f"input/config/{name}.json", text)

    def hyperparameters(self, **given: Any) -> None:
        self.write("hyperparameters", given)

    def code(self, **files: str) -> Path:
        """code/<name>.py for every keyword."""
        for name, text in files.items():
            self.file(f"code/{name}.py", text)
        return self.base / "code"

    def file(self, name: str, text: str = "") -> Path:
        path = self.base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def config(self, defaults: Mapping[str, Any] | None = None) -> JobConfig:
        return JobConfig.read(self.env, defaults=defaults)
