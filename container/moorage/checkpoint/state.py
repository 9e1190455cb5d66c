"""From the things a program tracks to tensors by name and JSON, and back.

Modules and optimizers are named by parameter, so that a checkpoint fits any strategy and world size. Anything else with
state_dict and load_state_dict has its tensors taken out of the state and the rest written as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from moorage.checkpoint import optimizers
from moorage.checkpoint.jsonable import decode, encode, tensor_names
from moorage.checkpoint.manifest import JSON
from moorage.checkpoint.metadata import TensorFacts, new_tensor
from moorage.checkpoint.modules import ModuleState, read_module, write_derived
from moorage.checkpoint.plan import Tensors
from moorage.errors import CheckpointError

_SHOWN = 4


def capture(tracked: Mapping[str, Any]) -> tuple[Tensors, dict[str, JSON]]:
    """The state of all things tracked: live tensors by name, and the rest as JSON by the name of the thing.

    Raises CheckpointError naming what cannot be saved.
    """
    modules = _modules(tracked)
    names = _parameter_names(modules)
    tensors: dict[str, Tensor] = {}
    objects: dict[str, JSON] = {}
    replicated: set[str] = set()
    steady: set[str] = set()
    for key, thing in tracked.items():
        if key in modules:
            state = modules[key]
            tensors |= {f"{key}/{name}": tensor for name, tensor in state.tensors.items()}
            replicated |= {f"{key}/{name}" for name in state.replicated}
            objects[key] = {"kind": "module", "derived": encode(state.derived, f"{key}/(derived)", tensors)}
        elif isinstance(thing, Optimizer):
            optimizer = optimizers.read_optimizer(key, thing, names)
            tensors |= optimizer.tensors
            replicated |= {name for name, owner in optimizer.owners.items() if owner in replicated}
            if optimizers.with_hooks(thing) is not None:
                steady |= optimizer.owners.keys() | optimizer.parameters
            objects[key] = {"kind": "optimizer", **optimizer.content}
        else:
            objects[key] = {"kind": "object", "state": encode(thing.state_dict(), key, tensors)}
    for key, state in modules.items():
        steady |= _frozen_beside(steady, key, state)
    return Tensors(tensors, replicated=frozenset(replicated), steady=frozenset(steady)), objects


def _frozen_beside(steady: Set[str], key: str, state: ModuleState) -> set[str]:
    """Parameters that no optimizer changes, of a module of which one changes others.

    Those of a module with no other parameters may be an average that follows the weights after each step.
    """
    names = {f"{key}/{name}": name for name in state.parameters.values()}
    if steady.isdisjoint(names):
        return set()
    return {full for full, name in names.items() if not state.tensors[name].requires_grad}


def template(
    tracked: Mapping[str, Any],
    stored: Mapping[str, TensorFacts],
    objects: Mapping[str, JSON],
    *,
    among: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """The tensors to load for `tracked`: the live ones of modules and optimizers, new ones where there are none yet.

    stored: what the checkpoint holds. among: other things tracked, whose parameters an optimizer may have.
    Raises CheckpointError listing what is missing, unexpected, or of another shape, when it is that of another program.
    """
    modules = _modules(tracked)
    names = _parameter_names(modules | _modules(among or {}))
    differences = Differences()
    found: dict[str, Tensor] = {}
    for key, thing in tracked.items():
        kind = "module" if key in modules else "optimizer" if isinstance(thing, Optimizer) else "object"
        content = objects.get(key)
        if not isinstance(content, dict) or content.get("kind") != kind:
            differences.missing.append(f"{key} ({kind})")
        elif kind == "module":
            found |= _module_template(key, modules[key], stored, content, differences)
        elif kind == "optimizer":
            missing, unexpected = optimizers.group_problems(key, content, optimizers.read_optimizer(key, thing, names))
            differences.missing += missing
            differences.unexpected += unexpected
            if content["type"] != type(thing).__name__:
                differences.different.append(f"{key} is {type(thing).__name__}, in the checkpoint {content['type']}")
            if not missing and not unexpected:
                found |= optimizers.prepare(key, thing, content, stored, names)
        else:
            found |= _object_template(key, thing, stored, content)
    differences.raise_any()
    return found


def restore(
    tracked: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    objects: Mapping[str, JSON],
    *,
    among: Mapping[str, Any] | None = None,
) -> None:
    """Put in place what was loaded into the tensors of `template`. Modules first, then optimizers, then the rest."""
    modules = _modules(tracked)
    names = _parameter_names(modules | _modules(among or {}))

    def tensor(name: str) -> Tensor:
        return tensors[name]

    for key, state in modules.items():
        write_derived(tracked[key], state, decode(objects[key]["derived"], tensor))
    for key, thing in tracked.items():
        if isinstance(thing, Optimizer):
            optimizers.apply(thing, objects[key], tensor, names)
    for key, thing in tracked.items():
        if key not in modules and not isinstance(thing, Optimizer):
            thing.load_state_dict(decode(objects[key]["state"], tensor))


@dataclass(kw_only=True)
class Differences:
    """How a checkpoint differs from the program that wants it."""

    where: str = "the checkpoint"
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def raise_any(self) -> None:
        """Raises CheckpointError when there is one."""
        parts = [
            _some(f"not in {self.where}", self.missing),
            _some(f"only in {self.where}", self.unexpected),
            _some("different", self.different),
        ]
        if any(parts):
            raise CheckpointError(
                "the checkpoint is that of another model or program",
                why="; ".join(part for part in parts if part),
                fix="resume with the program that wrote it, or give the job another checkpoint folder",
            )


def _some(what: str, items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {what}: {', '.join(items[:_SHOWN])}{more}" if items else ""


def _modules(tracked: Mapping[str, Any]) -> dict[str, ModuleState]:
    return {key: read_module(thing) for key, thing in tracked.items() if isinstance(thing, nn.Module)}


def _parameter_names(modules: Mapping[str, ModuleState]) -> dict[int, str]:
    names: dict[int, str] = {}
    for key, state in modules.items():
        for identity, name in state.parameters.items():
            names.setdefault(identity, f"{key}/{name}")
    return names


def _module_template(
    key: str,
    state: ModuleState,
    stored: Mapping[str, TensorFacts],
    content: Mapping[str, JSON],
    differences: Differences,
) -> dict[str, Tensor]:
    derived = set(tensor_names(content["derived"]))
    here = {f"{key}/{name}": tensor for name, tensor in state.tensors.items()}
    there = {name for name in stored if name.startswith(f"{key}/") and name not in derived}
    differences.missing += [name for name in here if name not in there]
    differences.unexpected += sorted(there - set(here))
    differences.missing += [f"{key}/{name}" for name in state.derived if name not in content["derived"]]
    differences.unexpected += [f"{key}/{name}" for name in content["derived"] if name not in state.derived]
    for name in there & set(here):
        differences.different += _difference(name, here[name], stored[name])
    return here | {name: new_tensor(name, stored) for name in derived}


def _difference(name: str, tensor: Tensor, facts: TensorFacts) -> Iterator[str]:
    if tensor.is_meta:
        yield f"{name} has no memory yet (device meta)"
    if tuple(tensor.shape) != facts.shape:
        yield f"{name} is {list(tensor.shape)}, in the checkpoint {list(facts.shape)}"
    elif tensor.dtype != facts.dtype:
        yield f"{name} is {tensor.dtype}, in the checkpoint {facts.dtype}"


def _object_template(
    key: str, thing: Any, stored: Mapping[str, TensorFacts], content: Mapping[str, JSON]
) -> dict[str, Tensor]:
    current: dict[str, Tensor] = {}
    encode(thing.state_dict(), key, current)
    found = {}
    for name in tensor_names(content["state"]):
        found[name], now = new_tensor(name, stored), current.get(name)
        # Not into what is there: load_state_dict may want to compare, or refuse.
        if now is not None and now.shape == found[name].shape and now.dtype == found[name].dtype:
            found[name] = torch.empty_like(now)
    return found
