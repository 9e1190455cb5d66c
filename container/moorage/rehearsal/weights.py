"""Whether two archives of a model hold the same weights: bit for bit, nearly, or where not.

Tensors are read from safetensors, from what torch.save wrote (without running any of it) and from numpy's files. Of any
other file only its bytes can be compared.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage.rehearsal.sameness import TOLERANCE, Same

if TYPE_CHECKING:
    import torch

_SAFE, _TORCH, _NUMPY = (".safetensors",), (".pt", ".pth", ".bin", ".ckpt"), (".npy", ".npz")
WEIGHTS = _SAFE + _TORCH + _NUMPY


@dataclass(frozen=True, kw_only=True)
class Difference:
    """distance: of the tensors' values, at most; None where that says nothing, as of other shapes. why: in words."""

    name: str
    same: Same
    distance: float | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Weights:
    """same: None where there was nothing to compare. files: those with weights. differences: the worst first.
    others: files without weights that differ."""

    same: Same | None
    files: tuple[str, ...]
    differences: tuple[Difference, ...]
    others: tuple[str, ...]


def compare_weights(whole: Path | None, broken: Path | None) -> Weights:
    """Two model.tar.gz, None where a run left none."""
    one, other = _files(whole), _files(broken)
    names = {name for name in one.keys() | other.keys() if name.endswith(WEIGHTS)} or one.keys() | other.keys()
    differences = [found for name in sorted(names) for found in _compare(name, one.get(name), other.get(name))]
    differences.sort(key=lambda found: (-found.same, -(found.distance or 0.0)))
    others = sorted(name for name in (one.keys() | other.keys()) - names if one.get(name) != other.get(name))
    return Weights(
        same=max((found.same for found in differences), default=Same.EXACT) if names else None,
        files=tuple(sorted(names)),
        differences=tuple(differences),
        others=tuple(others),
    )


def _files(archive: Path | None) -> dict[str, bytes]:
    if archive is None:
        return {}
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]  # it is a file


def _compare(name: str, one: bytes | None, other: bytes | None) -> Iterator[Difference]:
    if one == other:
        return
    if one is None or other is None:
        which = "interrupted" if one is None else "uninterrupted"
        yield Difference(name=name, same=Same.APART, distance=None, why=f"only the {which} run wrote it")
        return
    ours, theirs = _tensors(name, one), _tensors(name, other)
    if ours is None or theirs is None:
        yield Difference(name=name, same=Same.APART, distance=None, why="its bytes differ")
        return
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in ours or key not in theirs:
            which = "uninterrupted" if key in ours else "interrupted"
            yield Difference(name=key, same=Same.APART, distance=None, why=f"only the {which} run has it")
        elif found := _difference(key, ours[key], theirs[key]):
            yield found


def _difference(name: str, one: torch.Tensor, other: torch.Tensor) -> Difference | None:
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        why = f"{one.dtype} {tuple(one.shape)} against {other.dtype} {tuple(other.shape)}"
        return Difference(name=name, same=Same.APART, distance=None, why=why)
    if torch.equal(_bits(one), _bits(other)):
        return None
    wide = torch.complex128 if one.is_complex() else torch.float64
    ours, theirs = one.to(wide), other.to(wide)
    near = torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    distance = float((ours - theirs).abs().nan_to_num(float("inf")).max())
    return Difference(name=name, same=Same.NEAR if near else Same.APART, distance=distance, why=f"by {distance:.3g}")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _tensors(name: str, data: bytes) -> Mapping[str, torch.Tensor] | None:
    """None where they cannot be read."""
    import pickle

    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if name.endswith(_SAFE):
            return dict(load(data))
        if name.endswith(_NUMPY):
            arrays = np.load(io.BytesIO(data), allow_pickle=False)
            return dict(_flat(name, arrays if isinstance(arrays, np.ndarray) else dict(arrays)))
        # What is no zip is no file of torch.save, or one from before 2020.
        if name.endswith(_TORCH) and zipfile.is_zipfile(io.BytesIO(data)):
            return dict(_flat("", torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)))
    except (SafetensorError, ValueError, EOFError, OSError, TypeError, RuntimeError, pickle.UnpicklingError):
        return None  # torch says RuntimeError of a broken zip, TypeError of an array of texts
    return None


def _flat(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value.detach()
    elif isinstance(value, np.ndarray | np.generic):
        yield name, torch.from_numpy(np.asarray(value).copy())
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}".lstrip("."), inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _flat(f"{name}.{index}".lstrip("."), inner)
    elif isinstance(value, bool | int | float):
        yield name, torch.tensor(value, dtype=torch.float64)
