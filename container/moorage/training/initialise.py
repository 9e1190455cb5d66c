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
    """Build modules whose parameters are on the meta device; their buffers are real, and no random number is spent.

    As accelerate's init_empty_weights does, which parts tied parameters, though.
    """
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


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
        full = distribute_tensor(full, target.device_mesh, target.placements, src_data_rank=None)
    local(target).copy_(local(full))


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def initialise(model: nn.Module, fresh: set[str], seed: int, device: torch.device) -> str:
    """Initialise the parameters and buffers named in `fresh`, which were on the meta device; says by what. Collective.

    By the model's own init_weights(), else by reset_parameters() of each module, followed by the model's
    _init_weights(module) if it has one. The numbers depend on the seed alone. Raises ConfigError naming what is left.
    """
    tensors = {name: t for name, t in [*model.named_parameters(), *model.named_buffers()] if name in fresh}
    devices = [device] if device.type == "cuda" else []
    own = getattr(model, "init_weights", None)
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        marks = {name: _mark(tensor) for name, tensor in tensors.items()}
        if callable(own):
            by = "init_weights()"
            with _AlikeOnAllRanks():
                own()
        else:
            by = _module_by_module(model, {id(t) for t in tensors.values()})
    after = dict([*model.named_parameters(), *model.named_buffers()])
    left = _agreed([name for name, tensor in tensors.items() if _untouched(after[name], tensor, marks[name])])
    if left:
        raise ConfigError(
            f"the model was built on the meta device, and nothing initialises {', '.join(left[:5])}"
            + (f" and {len(left) - 5} more" if len(left) > 5 else ""),
            why=f"{by} did not write to it" if callable(own) else "its module has no reset_parameters()",
            fix="give the model an init_weights() that sets all parameters and buffers, or pass a function that builds "
            "the model to parallelize()",
        )
    return by


def _mark(tensor: Tensor) -> int:
    """Make it visible whether `tensor` is written to: numbers that are not one for floats, whose `.data` programs write
    to behind the version counter, and the counter for others."""
    if tensor.is_floating_point():
        local(tensor).fill_(torch.nan)
    return tensor._version


def _untouched(tensor: Tensor, marked: Tensor, mark: int) -> bool:
    if tensor.is_floating_point():
        return bool(local(tensor).isnan().any())
    return tensor is marked and tensor._version == mark


def _agreed(names: list[str]) -> list[str]:
    """The names that any rank found: one whose shard is empty finds none."""
    found = [names]
    if dist.is_initialized():
        found = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, names)
    return sorted({name for part in found for name in part})


def _module_by_module(model: nn.Module, fresh: set[int]) -> str:
    left = set(fresh)
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        own = {id(tensor) for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]}
        if callable(reset) and own & left:
            _on_whole_parameters(module, reset, left)
            left -= own  # a tied parameter is that of the first module which has it
    refine = getattr(model, "_init_weights", None)
    if not callable(refine):
        return "reset_parameters()"
    model.apply(lambda module: _on_whole_parameters(module, lambda: refine(module), fresh))
    return "reset_parameters() and _init_weights(module)"


def _on_whole_parameters(module: nn.Module, action: Callable[[], Any], kept: set[int]) -> None:
    """Run `action` with the parameters of `module` whole, so that it may index, slice or factor them; then keep the
    shards of those in `kept`. Collective."""
    targets = {name: p for name, p in module.named_parameters(recurse=False)}
    wholes = {
        name: nn.Parameter(p.full_tensor() if isinstance(p, DTensor) else p.clone(), requires_grad=p.requires_grad)
        for name, p in targets.items()
    }
    module._parameters.update(wholes)
    try:
        action()
    finally:
        module._parameters.update(targets)
    for name, target in targets.items():
        if id(target) in kept:
            write(target, wholes[name].detach())


class _AlikeOnAllRanks(TorchFunctionMode):
    """Random numbers for a sharded tensor are drawn for the whole of it on every rank, and each keeps its shard.

    torch does so on some devices by moving the generator's offset, and not at all on the CPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Functions of nn.init come with their arguments by name, and are no longer looked into.
        args, kwargs = list(args), dict(kwargs or {})
        if not args and "tensor" in kwargs:
            args = [kwargs.pop("tensor")]
        target = args[0] if args else None
        if isinstance(target, DTensor) and (
            func in _RANDOM
            or getattr(func, "__module__", "") == nn.init.__name__
            or (func is Tensor.copy_ and not any(isinstance(arg, DTensor) for arg in args[1:]))
        ):
            full = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            write(target, func(full, *args[1:], **kwargs))
            return target
        return func(*args, **kwargs)
