"""The random numbers of one rank, as small tensors under `rng/<rank>/`."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

_PYTHON = struct.Struct("<I625I?d")
_NUMPY = struct.Struct("<624Iqqd")


def capture_rng(rank: int) -> dict[str, Tensor]:
    """torch's generators of the CPU and the current GPU, Python's, and numpy's once it is imported."""
    found = {"torch": torch.get_rng_state(), "python": _python_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    if "numpy" in sys.modules:
        found |= _numpy_state()
    return {f"rng/{rank:05d}/{name}": tensor for name, tensor in found.items()}


def restore_rng(rank: int, tensors: Mapping[str, Tensor]) -> None:
    """Set the generators to those states of `capture_rng` that `tensors` has."""
    found = {name.rpartition("/")[2]: value for name, value in tensors.items() if name.startswith(f"rng/{rank:05d}/")}
    if "torch" in found:
        torch.set_rng_state(found["torch"])
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])
    if "python" in found:
        version, *words, has_gauss, gauss = _PYTHON.unpack(_bytes(found["python"]))
        random.setstate((version, tuple(words), gauss if has_gauss else None))
    if "numpy" in found:
        import numpy

        *words, position, has_gauss, gauss = _NUMPY.unpack(_bytes(found["numpy"]))
        numpy.random.set_state(("MT19937", numpy.array(words, dtype=numpy.uint32), position, has_gauss, gauss))


def _python_state() -> Tensor:
    version, words, gauss = random.getstate()
    return _tensor(_PYTHON.pack(version, *words, gauss is not None, gauss or 0.0))


def _numpy_state() -> dict[str, Tensor]:
    import numpy

    name, words, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
    # Another bit generator was put in place of numpy's global one: it is the program's own to track.
    return {"numpy": _tensor(_NUMPY.pack(*words, position, has_gauss, gauss))} if name == "MT19937" else {}


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.tolist())
