"""Each kind of model, loaded from its file."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moorage.contract.secrets import redact
from moorage.errors import ModelError
from moorage.serving.artifact import Artifact, Found, Kind
from moorage.serving.example import Example, of_tensors
from moorage.serving.importing import calling, resolve
from moorage.serving.inputs import Spec, TensorSpec

log = logging.getLogger("moorage")


@dataclass(frozen=True, kw_only=True)
class Model:
    """value: what predict_fn is given. call: how a tensor, or several by name, go through it.
    ours: it is a module in Python that was built here, and may be changed.
    """

    value: Any
    call: Callable[[Any], Any]
    what: str
    ours: bool = False
    example: Example | None = None

    @property
    def module(self) -> nn.Module | None:
        return self.value if isinstance(self.value, nn.Module) else None


def wrap(value: Any, what: str, *, ours: bool = False, example: Example | None = None) -> Model:
    """A model that takes one tensor, or several by name."""

    def call(data: Any) -> Any:
        return value(**data) if type(data) is dict else value(data)

    return Model(value=value, call=call, what=what, ours=ours, example=example)


def load(found: Found, artifact: Artifact, device: torch.device) -> Model:
    """The model of a folder, on `device`, for inference. Raises ModelError."""
    loaders = {
        Kind.FACTORY: _from_factory, Kind.EXPORTED: _exported, Kind.SCRIPT: _script, Kind.PICKLE: _pickle,
    }  # fmt: skip
    return loaders[found.kind](found.file, artifact, device)


def _from_factory(file: Path, artifact: Artifact, device: torch.device) -> Model:
    recipe = artifact.facts["factory"]
    name = str(recipe.get("name", ""))
    factory = resolve(name, ", ".join(map(str, artifact.import_from)) or "the folder code, which is not there")
    with calling(f"{name} of model.json"):
        module = factory(*recipe.get("positional", ()), **recipe.get("arguments", {}))
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{name} of model.json returned a {type(module).__name__}",
            why="a factory returns a torch.nn.Module",
            fix="ship the code that the model was trained with",
        )
    state = _state(file)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"{file} does not fit what {name} builds",
            why=_lines(error),
            fix="ship the code and the arguments that the model was trained with",
        ) from None
    with _loading(file):
        module.to(device)
    module.eval()
    num_params = sum(p.numel() for p in module.parameters())
    arguments = redact(json.dumps(recipe.get("arguments", {})))
    return wrap(module, f"{name} built with {arguments}, {num_params:,} parameters of {file.name}", ours=True)


def _state(file: Path) -> Mapping[str, Any]:
    with _loading(file):
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise ModelError(f"{file} holds a {type(state).__name__}", why="a state dict was expected", fix="write that")
    return state


def _script(file: Path, artifact: Artifact, device: torch.device) -> Model:
    with _loading(file), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        module = torch.jit.load(file, map_location=device)
    module.eval()
    return wrap(module, f"TorchScript of {file.name}")


def _exported(file: Path, artifact: Artifact, device: torch.device) -> Model:
    with _loading(file):
        program = torch.export.load(file)
        spec, tensors = _signature(program)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module: Any = program.module()
    names, num_positional = list(program.graph_signature.user_inputs), _num_positional(program)

    def call(data: Any) -> Any:
        if type(data) is not dict:
            return module(data)
        first, rest = names[:num_positional], names[num_positional:]
        return module(*(data[name] for name in first), **{name: data[name] for name in rest})

    example = of_tensors(tensors, spec, f"the example inputs of {file.name}")
    return Model(value=module, call=call, what=f"torch.export program of {file.name}", example=example)


def _signature(program: torch.export.ExportedProgram) -> tuple[Spec, dict[str, Tensor]]:
    """What the program takes, and an example of it; neither where that is not plain tensors by name."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    specs: dict[str, TensorSpec] = {}
    for name in program.graph_signature.user_inputs:
        value = values.get(str(name))
        if not isinstance(value, Tensor):
            return None, {}
        shape = tuple(dim if isinstance(dim, int) else None for dim in value.shape)
        specs[str(name)] = TensorSpec(dtype=value.dtype, shape=shape)
    args, kwargs = program.example_inputs or ((), {})
    tensors = dict(zip(specs, (*args, *kwargs.values()), strict=False))
    if len(tensors) != len(specs) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        return None, {}
    alone = len(specs) == 1 and _num_positional(program) == 1
    return (next(iter(specs.values())) if alone else specs), tensors


def _num_positional(program: torch.export.ExportedProgram) -> int:
    return program.call_spec.in_spec.children()[0].num_leaves if program.call_spec.in_spec else 0


def _pickle(file: Path, artifact: Artifact, device: torch.device) -> Model:
    log.warning(
        "MOORAGE_UNSAFE_PICKLE is true: %s is unpickled, and whatever code its author put into it runs now", file
    )
    with calling(f"unpickling {file.name}"):
        value = torch.load(file, map_location=device, weights_only=False)
    if not isinstance(value, nn.Module):
        raise ModelError(
            f"{file} holds a {type(value).__name__}, which is no model",
            why="weights alone do not say what they are the weights of",
            fix="pickle the whole model, or write model_fn in code/inference.py, which builds it and loads them",
        )
    value.eval()
    return wrap(value, f"{type(value).__name__} of the pickle {file.name}", ours=True)


@contextmanager
def _loading(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a damaged file makes torch fail in any way
        raise ModelError(
            f"{file} cannot be loaded", why=_lines(error), fix="write it anew, with the torch that serves it"
        ) from None


def _lines(error: Exception, limit: int = 6) -> str:
    """The first lines of torch's long errors."""
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:limit])[:600]}"
