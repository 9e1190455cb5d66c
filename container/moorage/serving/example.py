"""The example of a model: what a body must be, and what the model is warmed up with.

In model.json it is {"file": "example.npy", "dtype": "float32", "shape": [null, 1, 8, 8]}, where null is any size; of
several tensors {"file": "example.json", "inputs": {"ids": {"dtype": "int64", "shape": [null, null]}, ...}}; and of any
other value {"file": "example.json"}. A file of that name without a word in model.json warms up, and checks nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moorage.errors import ModelError
from moorage.serving import npy
from moorage.serving.artifact import Artifact
from moorage.serving.inputs import Spec, TensorSpec
from moorage.serving.media import JSON, NPY
from moorage.serving.plain import as_numpy


@dataclass(frozen=True, kw_only=True)
class Example:
    """body: as a client would send it."""

    spec: Spec
    body: bytes
    content_type: str
    source: str


def read(artifact: Artifact) -> Example | None:
    """Raises ModelError for one that is not as run.finish() writes it."""
    told = artifact.facts.get("example")
    if artifact.example is None:
        return None
    try:
        body = artifact.example.read_bytes()
        spec = _spec(told) if isinstance(told, Mapping) else None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the example of {artifact.folder} cannot be read",
            why=f"{type(error).__name__}: {error}",
            fix="write it by run.finish(example=...), or remove it and its entry in model.json",
        ) from None
    content_type = NPY if artifact.example.suffix == ".npy" else JSON
    return Example(spec=spec, body=body, content_type=content_type, source=artifact.example.name)


def _spec(told: Mapping[str, Any]) -> Spec:
    if "inputs" in told:
        return {str(name): _tensor(part) for name, part in told["inputs"].items()}
    return _tensor(told) if "dtype" in told else None


def _tensor(told: Mapping[str, Any]) -> TensorSpec:
    dtype = getattr(torch, str(told["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{told['dtype']} is no type of torch's")
    return TensorSpec(dtype=dtype, shape=tuple(None if dim is None else int(dim) for dim in told["shape"]))


def of_tensors(tensors: Mapping[str, Tensor], spec: Spec, source: str) -> Example | None:
    """What a program of torch.export holds; None where a spec could not be read."""
    if isinstance(spec, TensorSpec):
        body, content_type = npy.encode(as_numpy(next(iter(tensors.values())))), NPY
    elif spec:
        lists = {name: tensor.tolist() for name, tensor in tensors.items()}
        body, content_type = json.dumps({"inputs": lists}).encode(), JSON
    else:
        return None
    return Example(spec=spec, body=body, content_type=content_type, source=source)
