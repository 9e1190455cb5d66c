"""An optimizer's state by the names of its parameters, so that it fits any sharding and any order of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from moorage.checkpoint.jsonable import decode, encode, tensor_names
from moorage.checkpoint.manifest import JSON
from moorage.checkpoint.metadata import TensorFacts, facts_of, new_tensor
from moorage.errors import CheckpointError


@dataclass(kw_only=True)
class OptimizerState:
    """tensors: by name in the checkpoint, the live ones. content: the rest, as JSON.

    owners: for each tensor of a parameter's state, the parameter's name. parameters: the names of all it optimizes.
    """

    content: dict[str, JSON]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)


def read_optimizer(key: str, optimizer: Optimizer, names: Mapping[int, str]) -> OptimizerState:
    """The state of the optimizer tracked as `key`. names: of all tracked parameters by their id.

    Raises CheckpointError for a parameter that no tracked module has, and for state that cannot be saved rightly.
    """
    state = OptimizerState(content={})
    groups, values = [], {}
    for index, group in enumerate(optimizer.param_groups):
        members = [_name_of(key, parameter, names) for parameter in group["params"]]
        options = {option: value for option, value in group.items() if option != "params"}
        state.parameters.update(members)
        groups.append({"params": members, "options": encode(options, f"{key}/param_groups/{index}", state.tensors)})
        for parameter, name in zip(group["params"], members, strict=True):
            if parameter in optimizer.state:
                before = len(state.tensors)
                values[name] = encode(optimizer.state[parameter], f"{key}/{name}", state.tensors)
                added = list(state.tensors)[before:]
                state.owners |= dict.fromkeys(added, name)
                _check_sharding(parameter, {part: state.tensors[part] for part in added})
    state.content |= {"type": type(optimizer).__name__, "param_groups": groups, "state": values}
    return state


def with_hooks(optimizer: Optimizer) -> Optimizer | None:
    """The optimizer whose step calls torch's hooks before it changes anything: itself, or the one that accelerate has
    wrapped. None where none does.
    """
    inner: Any = optimizer
    while isinstance(inner, Optimizer):
        if hasattr(inner, "_optimizer_step_pre_hooks"):
            return inner if getattr(type(inner).step, "hooked", False) else None
        inner = getattr(inner, "optimizer", None)
    return None


def _name_of(key: str, parameter: Tensor, names: Mapping[int, str]) -> str:
    name = names.get(id(parameter))
    if name is None:
        raise CheckpointError(
            f"{key} optimizes a parameter of shape {tuple(parameter.shape)} that no tracked module has",
            why="the optimizer was made before the model was parallelized, or its model is not tracked",
            fix="track the model with the optimizer, and make the optimizer from the parallelized model's parameters",
        )
    return name


def _is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and any(not placement.is_replicate() for placement in tensor.placements)


def _check_sharding(parameter: Tensor, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if _is_sharded(parameter) and not isinstance(tensor, DTensor) and tensor.numel() > 1:
            raise CheckpointError(
                f"{name} is a plain tensor of shape {tuple(tensor.shape)}, though its parameter is sharded",
                why="each rank has another part of it, and nothing says which, so it cannot be saved correctly",
                fix="use an optimizer that makes its state with torch.zeros_like(parameter), or the strategy ddp",
            )


def state_target(
    name: str, facts: TensorFacts, parameter: Tensor, group: Mapping[str, Any], current: Tensor | None
) -> Tensor:
    """The tensor to load a part of a parameter's state into: the one that is there, or new memory, sharded likewise.

    Raises CheckpointError where nothing says how it is sharded.
    """
    if current is not None and tuple(current.shape) == facts.shape and current.dtype == facts.dtype:
        return current
    if facts.shape == tuple(parameter.shape):
        return torch.empty_like(parameter.detach(), dtype=facts.dtype)
    if _is_sharded(parameter) and torch.Size(facts.shape).numel() > 1:
        raise CheckpointError(
            f"{name} has shape {facts.shape} in the checkpoint and its parameter {tuple(parameter.shape)}",
            why="the parameter is sharded here, and nothing says how this part of its state is",
            fix="resume with the strategy ddp, or with an optimizer whose state has the shape of its parameters",
        )
    # As torch.optim itself has it on load: `step` stays on the CPU unless the kernels want it on the device.
    on_cpu = name.endswith("/step") and not (group.get("capturable") or group.get("fused"))
    return torch.empty(facts.shape, dtype=facts.dtype, device="cpu" if on_cpu else parameter.device)


def group_problems(key: str, content: Mapping[str, JSON], state: OptimizerState) -> tuple[list[str], list[str]]:
    """Parameters of this optimizer that the checkpoint's lacks, and the other way round, as `key[group]: name`."""
    saved, here = content["param_groups"], state.content["param_groups"]
    missing, unexpected = [], []
    for index in range(max(len(saved), len(here))):
        old = set(saved[index]["params"]) if index < len(saved) else set()
        new = set(here[index]["params"]) if index < len(here) else set()
        missing += [f"{key}[{index}]: {name}" for name in sorted(new - old)]
        unexpected += [f"{key}[{index}]: {name}" for name in sorted(old - new)]
    return missing, unexpected


def prepare(
    key: str,
    optimizer: Optimizer,
    content: Mapping[str, JSON],
    stored: Mapping[str, TensorFacts],
    names: Mapping[int, str],
) -> dict[str, Tensor]:
    """Targets for every tensor of the optimizer's state in the checkpoint, by name. Raises CheckpointError."""
    state = read_optimizer(key, optimizer, names)
    by_name = {names[id(p)]: (p, group) for group in optimizer.param_groups for p in group["params"]}
    targets: dict[str, Tensor] = {}
    for owner, encoded in content["state"].items():
        parameter, group = by_name[owner]
        for name in tensor_names(encoded):
            targets[name] = state_target(name, facts_of(name, stored), parameter, group, state.tensors.get(name))
    for group in content["param_groups"]:
        for name in tensor_names(group["options"]):
            targets[name] = new_tensor(name, stored)
    return targets


def apply(
    optimizer: Optimizer, content: Mapping[str, JSON], tensor: Callable[[str], Tensor], names: Mapping[int, str]
) -> None:
    """Put loaded tensors and the options of the groups in place."""
    for group, saved in zip(optimizer.param_groups, content["param_groups"], strict=True):
        for option, value in decode(saved["options"], tensor).items():
            if isinstance(value, Tensor) and isinstance(group.get(option), Tensor):
                # A compiled step holds on to this very tensor.
                group[option].copy_(value)
            else:
                group[option] = value
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
            name = names[id(parameter)]
            if name in content["state"]:
                optimizer.state[parameter] = decode(content["state"][name], tensor)
