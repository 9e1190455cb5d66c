"""A module's state under names that no wrapper changes: DDP, FSDP2, torch.compile, activation checkpointing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

from moorage.errors import CheckpointError

_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True, kw_only=True)
class ModuleState:
    """tensors: parameters and persistent buffers by canonical name, shared ones once; the live ones, not copies.

    parameters: the name of each parameter by its id. replicated: parameters that DDP keeps alike on all ranks.
    derived: what state_dict() makes up instead of handing out, by canonical name; load_state_dict has to take it back.
    raw: for the derived, the name that the module itself uses. shared: further names of a tensor, each with its first.
    """

    tensors: dict[str, Tensor]
    parameters: dict[int, str]
    replicated: frozenset[str]
    derived: dict[str, Any]
    raw: dict[str, str]
    shared: dict[str, str]


def read_module(module: nn.Module) -> ModuleState:
    """Raises CheckpointError for a module whose state cannot be told by name."""
    rename = _Renaming(module)
    # First, since it ends what a forward of FSDP2 left gathered: until then other tensors stand in for the parameters.
    state = module.state_dict(keep_vars=True)
    own_parameters = {id(parameter) for parameter in module.parameters()}
    own = own_parameters | {id(buffer) for buffer in module.buffers()}
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    derived: dict[str, Any] = {}
    raw: dict[str, str] = {}
    shared: dict[str, str] = {}
    for given, value in state.items():
        name = rename(given)
        if name in tensors or name in derived or name in shared:
            raise CheckpointError(f"two parts of {type(module).__name__} have the name {name!r} without their wrappers")
        if isinstance(value, Tensor) and id(value) in own:
            if id(value) in names:
                shared[name] = names[id(value)]
            else:
                names[id(value)] = name
                tensors[name] = value
        else:
            derived[name], raw[name] = value, given
    parameters = {key: name for key, name in names.items() if key in own_parameters}
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    alike = frozenset(parameters.values()) if rename.ddp and not sharded else frozenset[str]()
    return ModuleState(
        tensors=tensors, parameters=parameters, replicated=alike, derived=derived, raw=raw, shared=shared
    )


def write_derived(module: nn.Module, state: ModuleState, values: Mapping[str, Any]) -> None:
    """Give back what was derived. values: by canonical name."""
    if values:
        module.load_state_dict({state.raw[name]: value for name, value in values.items()}, strict=False)


class _Renaming:
    def __init__(self, module: nn.Module) -> None:
        self.ddp: list[str] = []
        for name, part in module.named_modules(remove_duplicate=False):
            if type(part).__name__ == "FullyShardedDataParallel":
                raise CheckpointError(
                    f"{type(module).__name__} is wrapped by FullyShardedDataParallel (FSDP1)",
                    why="its flat parameters cannot be told apart by name",
                    fix="use run.parallelize(model), or torch.distributed.fsdp.fully_shard",
                )
            if isinstance(part, DistributedDataParallel | DataParallel):
                self.ddp.append(f"{name}." if name else "")

    def __call__(self, name: str) -> str:
        # An attribute of the user's own may be called `module` too, so only that of the wrapper itself is left out.
        for prefix in reversed(self.ddp):
            if name.startswith(f"{prefix}module."):
                name = prefix + name.removeprefix(f"{prefix}module.")
        return _WRAPPERS.sub("", name)
