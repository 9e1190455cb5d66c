"""Where the first weights of a sharded model come from, without the whole of it on any device.

Either rank 0 holds them, on its CPU, and hands out one parameter at a time; or the model was built on the meta device,
and every rank draws the same numbers from the seed, one parameter at a time, and keeps its shard. Both give weights
that do not depend on the number of ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.overrides import TorchFunctionMode

from moorage.errors import ConfigError

log = logging.getLogger("moorage")

Tensors = dict[str, Tensor]

_RANDOM = frozenset(
    getattr(Tensor, name)
    for name in ("normal_", "uniform_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_", "random_")
)


@contextmanager
def sketching() -> Iterator[None]:
    """Build modules whose parameters are on the meta device; their buffers are real, and no random number is spent."""
    from accelerate import init_empty_weights

    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        yield


def on_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def take_weights(model: nn.Module, *, keep: bool) -> Tensors:
    """Move the parameters of `model` to the meta device; return what they and the buffers held, by name.

    keep: False on the ranks that will be told, whose copies are given up here.
    """
    held: Tensors = {name: buffer for name, buffer in model.named_buffers() if not buffer.is_meta}
    held |= {name: p.detach() for name, p in model.named_parameters() if keep and not p.is_meta}
    _replace(model, lambda t: t.detach().to("meta") if isinstance(t, nn.Parameter) and not t.is_meta else t)
    return held


def materialise(model: nn.Module, device: torch.device) -> None:
    """Give the meta parameters and buffers of `model` memory on `device`, uninitialised.

    Module.to_empty would part tied parameters, and empty the real ones as well.
    """
    _replace(model, lambda t: torch.empty_like(t, device=device) if t.is_meta else t)


def _replace(model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Put `change(tensor)` in the place of each parameter and buffer; what was one tensor stays one."""
    originals = [*model.parameters(), *model.buffers()]  # kept alive, or an id could come up twice
    changed: dict[int, Tensor] = {}
    for original in originals:
        new = change(original)
        if isinstance(original, nn.Parameter) and new is not original:
            new = nn.Parameter(new, requires_grad=original.requires_grad)
        changed[id(original)] = new
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and changed[id(tensor)] is not tensor:
                setattr(module, name, changed[id(tensor)])


def hand_out(model: nn.Module, held: Tensors, names: set[str], device: torch.device) -> None:
    """Give every rank its part of rank 0's parameters `names`, and all of its buffers. Collective."""
    with torch.no_grad():
        for name, target in [*model.named_parameters(), *model.named_buffers()]:
            if name not in names:
                continue
            full = (
                held[name].to(device) if name in held else torch.empty(target.shape, dtype=target.dtype, device=device)
            )
            full = full.contiguous()
            dist.broadcast(full, src=0)
            write(target, full)


def write(target: Tensor, full: Tensor) -> None:
    """Copy the whole tensor `full`, which every rank holds, into `target`: all of it, or this rank's shard."""
    if isinstance(target, DTensor):
        shard = distribute_tensor(full, target.device_mesh, target.placements, src_data_rank=None)
        target.to_local().copy_(shard.to_local())
        torch.autograd.graph.increment_version(target)
    else:
        target.copy_(full)


def initialise(model: nn.Module, fresh: set[str], seed: int, device: torch.device) -> str:
    """Initialise the parameters and buffers named in `fresh`, which were on the meta device; says by what.

    By the model's own init_weights(), else by reset_parameters() of each module, followed by the model's
    _init_weights(module) if it has one. The numbers depend on the seed alone. Raises ConfigError naming what is left.
    """
    tensors = {name: t for name, t in [*model.named_parameters(), *model.named_buffers()] if name in fresh}
    before = {name: (id(t), t._version) for name, t in tensors.items()}
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        own = getattr(model, "init_weights", None)
        if callable(own):
            by = "init_weights()"
            with _AlikeOnAllRanks():
                own()
        else:
            by = _module_by_module(model, {id(t) for t in tensors.values()})
    after = dict([*model.named_parameters(), *model.named_buffers()])
    left = [name for name, seen in before.items() if (id(after[name]), after[name]._version) == seen]
    if left:
        raise ConfigError(
            f"the model was built on the meta device, and nothing initialises {', '.join(sorted(left)[:5])}"
            + (f" and {len(left) - 5} more" if len(left) > 5 else ""),
            why=f"{by} did not write to it" if callable(own) else "its module has no reset_parameters()",
            fix="give the model an init_weights() that sets all parameters and buffers, or pass a function that builds "
            "the model to parallelize()",
        )
    return by


def _module_by_module(model: nn.Module, fresh: set[int]) -> str:
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if callable(reset) and any(id(tensor) in fresh for tensor in own):
            _whole(module, reset, fresh)
    refine = getattr(model, "_init_weights", None)
    if not callable(refine):
        return "reset_parameters()"
    model.apply(lambda module: _whole(module, lambda: refine(module), fresh))
    return "reset_parameters() and _init_weights(module)"


def _whole(module: nn.Module, initialise: Callable[[], Any], fresh: set[int]) -> None:
    """Run `initialise` with the sharded parameters of `module` whole, so that it may index, slice or factor them, then
    keep the shards of those it wrote to."""
    targets = {
        name: p for name, p in module.named_parameters(recurse=False) if id(p) in fresh and isinstance(p, DTensor)
    }
    wholes = {name: _whole_of(target) for name, target in targets.items()}
    versions = {name: whole._version for name, whole in wholes.items()}
    module._parameters.update(wholes)
    try:
        initialise()
    finally:
        module._parameters.update(targets)
    for name, whole in wholes.items():
        if whole._version != versions[name]:
            write(targets[name], whole.detach())


def _whole_of(target: DTensor) -> nn.Parameter:
    full = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    return nn.Parameter(full, requires_grad=target.requires_grad)


class _AlikeOnAllRanks(TorchFunctionMode):
    """Random numbers for a sharded tensor are drawn for the whole of it on every rank, and each keeps its shard.

    torch does so on some devices by moving the generator's offset, and not at all on the CPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        target = args[0] if args else None
        kwargs = kwargs or {}
        if isinstance(target, DTensor) and (
            func in _RANDOM or (func is Tensor.copy_ and not isinstance(args[1], DTensor))
        ):
            full = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            write(target, func(full, *args[1:], **kwargs))
            return target
        return func(*args, **kwargs)
