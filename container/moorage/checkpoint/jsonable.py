"""State that is not tensors, as JSON and back without a loss; tensors met inside are put beside it, by name.

JSON's own values stand for themselves. Everything else is an object with the key `$`: {"$": "tuple", "v": [1, 2]}.
Only types that come back as exactly what they were are taken, so that a resumed run cannot differ in silence.
"""

from __future__ import annotations

import base64
import math
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from moorage.checkpoint.manifest import JSON
from moorage.errors import CheckpointError

TAG = "$"
_DEEPEST = 100
_LARGEST_INT_BITS = 4096
_FACTORIES: dict[str, Callable[[], Any]] = {kind.__name__: kind for kind in (list, dict, set, int, float, str, tuple)}


def encode(value: Any, path: str, tensors: dict[str, Tensor] | None = None) -> JSON:
    """`value` as JSON. Tensors inside go to `tensors` under their path; without `tensors` they are an error.

    path: how an error names the value, and what the names of its tensors begin with.
    Raises CheckpointError naming the place and the type of what cannot be saved.
    """
    return _Encoder(tensors).encode(value, path, 0)


class _Encoder:
    def __init__(self, tensors: dict[str, Tensor] | None) -> None:
        self._tensors = tensors

    def encode(self, value: Any, path: str, depth: int) -> JSON:
        if depth > _DEEPEST:
            raise _cannot(path, value, f"it is nested deeper than {_DEEPEST}, or holds itself")
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            if value.bit_length() > _LARGEST_INT_BITS:
                raise _cannot(path, value, "the number is too long")
            return value
        if kind is float:
            return value if math.isfinite(value) else {TAG: "float", "v": repr(value)}
        if isinstance(value, Tensor):
            return {TAG: "tensor", "v": self._name(value.detach(), path)}
        if kind is list:
            return self._items(value, path, depth)
        if kind is dict and TAG not in value and all(type(key) is str for key in value):
            return {key: self.encode(item, f"{path}/{key}", depth + 1) for key, item in value.items()}
        return {TAG: kind.__name__, **self._other(value, path, depth)}

    def _other(self, value: Any, path: str, depth: int) -> dict[str, JSON]:
        kind = type(value)
        if kind in (tuple, set, frozenset, torch.Size):
            return {"v": self._items(value, path, depth)}
        if kind is deque:
            return {"v": self._items(value, path, depth), "maxlen": value.maxlen}
        if kind in (dict, OrderedDict, Counter):
            return {"v": self._pairs(value, path, depth)}
        if kind is defaultdict:
            factory = getattr(value.default_factory, "__name__", None)
            if value.default_factory is not None and _FACTORIES.get(factory or "") is not value.default_factory:
                raise _cannot(path, value, f"its default_factory {value.default_factory!r} cannot be saved")
            return {"v": self._pairs(value, path, depth), "factory": factory}
        if kind is bytes:
            return {"v": base64.b64encode(value).decode()}
        if kind in (torch.dtype, torch.device):
            return {"v": str(value)}
        return self._numpy(value, path)

    def _numpy(self, value: Any, path: str) -> dict[str, JSON]:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray) and value.dtype.kind in "biufc":
            array = numpy.ascontiguousarray(value).reshape(value.shape)
            raw = torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8) if array.size else torch.empty(0)
            # Under one tag, since the types are as many as numpy has.
            return {TAG: "numpy", "v": self._name(raw, path), "dtype": array.dtype.str, "shape": list(value.shape),
                    "scalar": isinstance(value, numpy.generic)}  # fmt: skip
        raise _cannot(path, value, "it is neither a tensor nor plain data")

    def _items(self, values: Any, path: str, depth: int) -> list[JSON]:
        return [self.encode(item, f"{path}/{index}", depth + 1) for index, item in enumerate(values)]

    def _pairs(self, values: Any, path: str, depth: int) -> list[JSON]:
        return [
            [
                self.encode(key, f"{path}/{key!r:.40} (key)", depth + 1),
                self.encode(item, f"{path}/{key!s:.40}", depth + 1),
            ]
            for key, item in values.items()
        ]

    def _name(self, tensor: Tensor, path: str) -> str:
        if self._tensors is None:
            raise _cannot(path, tensor, "only plain data can be saved here")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise _cannot(path, tensor, f"a {tensor.layout} tensor cannot be saved: make it dense")
        # The keys 1 and "1" of one dict give the same path.
        while path in self._tensors:
            path += "~"
        self._tensors[path] = tensor
        return path


def _cannot(path: str, value: Any, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold",
        why=why,
        fix="leave it out of state_dict(), or give tensors, numbers, texts, lists, tuples and dicts of them",
    )


def tensor_names(encoded: JSON) -> Iterator[str]:
    """The names of the tensors that `encoded` refers to."""
    if isinstance(encoded, dict):
        if encoded.get(TAG) in ("tensor", "numpy"):
            yield str(encoded["v"])
        else:
            for value in encoded.values():
                yield from tensor_names(value)
    elif isinstance(encoded, list):
        for value in encoded:
            yield from tensor_names(value)


def decode(encoded: JSON, tensor: Callable[[str], Tensor]) -> Any:
    """What was encoded; `tensor` gives those that lie beside it. Raises CheckpointError for what encode never wrote."""
    try:
        return _decode(encoded, tensor)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"the manifest holds state that cannot be read: {encoded!r:.120}", why=f"{type(error).__name__}: {error}"
        ) from error


def _decode(encoded: JSON, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(encoded, list):
        return [_decode(value, tensor) for value in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if TAG not in encoded:
        return {key: _decode(value, tensor) for key, value in encoded.items()}
    kind, value = encoded[TAG], encoded["v"]
    if kind == "tensor":
        return tensor(value)
    if kind == "numpy":
        return _numpy_value(encoded, tensor(value))
    if kind == "defaultdict":
        factory = encoded["factory"]
        return defaultdict(_FACTORIES[factory] if factory is not None else None, _decoded_pairs(value, tensor))
    if kind == "deque":
        return deque(_decode(value, tensor), maxlen=encoded["maxlen"])
    if kind in _FROM_PAIRS:
        return _FROM_PAIRS[kind](_decoded_pairs(value, tensor))
    if kind in _FROM_ITEMS:
        return _FROM_ITEMS[kind](_decode(value, tensor))
    return _FROM_TEXT[kind](value)


def _decoded_pairs(pairs: JSON, tensor: Callable[[str], Tensor]) -> list[tuple[Any, Any]]:
    return [(_decode(key, tensor), _decode(value, tensor)) for key, value in pairs]


def _numpy_value(encoded: dict[str, JSON], raw: Tensor) -> Any:
    import numpy

    dtype = numpy.dtype(encoded["dtype"])
    if dtype.kind not in "biufc":
        raise ValueError(f"numpy dtype {dtype}")
    data = raw.to(torch.uint8).cpu().numpy().tobytes()
    array = numpy.frombuffer(data, dtype=dtype).reshape(encoded["shape"]).copy()
    return array[()] if encoded["scalar"] else array


def _dtype(text: str) -> torch.dtype:
    dtype = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{text!r} is no dtype")
    return dtype


_FROM_PAIRS: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": lambda v: Counter(dict(v)),
}
_FROM_ITEMS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset, "Size": torch.Size}
_FROM_TEXT: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "bytes": base64.b64decode,
    "dtype": _dtype,
    "device": torch.device,
}
