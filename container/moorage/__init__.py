"""Moorage: bring your own training container to Amazon SageMaker, and lose nothing when it is interrupted."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moorage.training.run import Run as Run
    from moorage.training.start import start as start

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "start"]

_HOMES = {"Run": "moorage.training.run", "start": "moorage.training.start"}


def __getattr__(name: str) -> Any:
    # PEP 562: torch is imported by the ranks that use it, never by PID 1.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moorage' has no attribute {name!r}")
