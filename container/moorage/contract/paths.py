"""Where the contract keeps things: the folders under /opt/ml, or under SAGEMAKER_BASE_DIR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The folders of one job. Nothing is created by asking for a path."""

    base: Path

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Paths:
        """SAGEMAKER_BASE_DIR, or /opt/ml as on the platform."""
        return cls(base=Path(env.get("SAGEMAKER_BASE_DIR") or "/opt/ml").absolute())

    @property
    def config(self) -> Path:
        return self.base / "input" / "config"

    @property
    def data(self) -> Path:
        return self.base / "input" / "data"

    @property
    def code(self) -> Path:
        return self.base / "code"

    @property
    def model(self) -> Path:
        return self.base / "model"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def output_data(self) -> Path:
        return self.output / "data"

    @property
    def failure(self) -> Path:
        return self.output / "failure"

    @property
    def checkpoints(self) -> Path:
        return self.base / "checkpoints"
