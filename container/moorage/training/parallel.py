"""Spread a model over the ranks: as it is, DDP, FSDP2 or HSDP, by torch's own API, the same on CPU and GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from moorage.contract.settings import Settings
from moorage.training import initialise
from moorage.training.blocks import find_blocks, find_groups
from moorage.training.data import mix
from moorage.training.memory import device_memory
from moorage.training.precision import Precision
from moorage.training.recompute import compile_blocks, recompute
from moorage.training.shard import shard
from moorage.training.strategy import Choice, ModelSize, choose
from moorage.training.warmup import settle_buckets

log = logging.getLogger("moorage")

Build = Callable[[], nn.Module]


def spread(
    model: nn.Module | Build,
    *,
    settings: Settings,
    device: torch.device,
    world_size: int,
    ranks_per_host: int,
    precision: Precision,
    blocks: Sequence[str] = (),
    find_unused_parameters: bool = False,
) -> tuple[nn.Module, Choice]:
    """`model` on its device as the settings say, and the strategy that was chosen. Collective.

    Arguments and errors are those of `parallelize`, and ConfigError for a strategy that the ranks cannot form.
    """
    sketch = model if isinstance(model, nn.Module) else _sketch(model)
    choice = choose(
        settings.strategy, measure(sketch, blocks), precision=precision.name,
        device_memory=device_memory(device, ranks_per_host), world_size=world_size, ranks_per_host=ranks_per_host,
        shard_size=settings.shard_size,
    )  # fmt: skip
    log.log(logging.INFO if choice.fits else logging.WARNING, "strategy %s: %s", choice.strategy, choice.why)
    model = parallelize(
        model, choice, device=device, precision=precision, seed=mix(settings.seed), blocks=blocks,
        activation_checkpointing=settings.activation_checkpointing, compile=settings.compile,
        find_unused_parameters=find_unused_parameters,
    )  # fmt: skip
    return model, choice


def parallelize(
    model: nn.Module | Build,
    choice: Choice,
    *,
    device: torch.device,
    precision: Precision,
    seed: int = 0,
    blocks: Sequence[str] = (),
    activation_checkpointing: bool = False,
    compile: bool = False,
    find_unused_parameters: bool = False,
) -> nn.Module:
    """`model` spread as `choice` says. Collective.

    All ranks begin with rank 0's parameters and buffers. Under fsdp and hsdp a function that builds the model is called
    in full by rank 0 only, on its CPU; a model built on the meta device is initialised shard by shard from the seed, by
    its init_weights() or its modules' reset_parameters().
    blocks: class names of the blocks that are gathered, recomputed and compiled one by one, where the rule of
    `find_blocks` does not find them. find_unused_parameters: for ddp, a model some of whose parameters take no part in
    some steps.

    To be called before the optimizer is made. Raises ConfigError for a model that cannot be initialised or sharded.
    """
    sharded = choice.strategy in ("fsdp", "hsdp")
    if not isinstance(model, nn.Module):
        model = _sketch(model) if sharded and dist.get_rank() else model()
    done = [choice.strategy]
    if not sharded:
        if initialise.on_meta(model):
            done.append(_from_meta(model, seed, device))
        model.to(device)
    named = find_blocks(model, blocks)
    if activation_checkpointing:
        done += recompute([block for _, block in named])
    if precision.dtype is not None:
        precision.autocast(model)
        done.append(precision.name)
    if compile:
        done += compile_blocks(model, [block for _, block in named], device)
    if sharded:
        groups = find_groups(model, blocks)
        done += shard(model, groups, choice, precision=precision, seed=seed, device=device)
    elif choice.strategy == "ddp" and any(p.requires_grad for p in model.parameters()):
        model = _replicate(model, device, find_unused_parameters)
    log.info("model: %s on %s", ", ".join(done), device)
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """The program's own module inside of DDP and torch.compile: its names are the canonical ones."""
    while isinstance(model, DistributedDataParallel) or "_orig_mod" in model._modules:
        inner = model.module if isinstance(model, DistributedDataParallel) else model._modules["_orig_mod"]
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def measure(model: nn.Module, blocks: Sequence[str] = ()) -> ModelSize:
    """What `choose` needs to know of `model`, which may be on the meta device."""
    parameters = list(model.parameters())
    groups = [_num_params(group.parameters()) for _, group in find_groups(model, blocks)]
    num_params = _num_params(parameters)
    return ModelSize(
        num_params=num_params,
        param_bytes=sum(p.numel() * p.element_size() for p in parameters),
        trainable_params=_num_params(p for p in parameters if p.requires_grad),
        group_params=max([num_params - sum(groups), *groups]),
    )


def set_gradient_sync(model: nn.Module, on: bool) -> None:
    """Whether the next forward and backward reduce gradients over the ranks: on for the last micro-batch of a step.

    Under fsdp each micro-batch is reduced all the same, since a whole gradient may not fit on a device; under hsdp the
    reduction across hosts waits for the last one.
    """
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = on
    elif isinstance(model, FSDPModule):
        model.set_requires_all_reduce(on)


def clip(model: nn.Module | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients so that their norm over all ranks is at most `max_norm`; returns the norm before. Collective.

    Parameters may be plain, sharded, or of several meshes.
    """
    parameters = model.parameters() if isinstance(model, nn.Module) else model
    kinds: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            mesh = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
            kinds.setdefault(mesh, []).append(parameter)
    norms = [_whole(get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds.values()]
    if not norms:
        return torch.zeros(())
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds.values():
        clip_grads_with_norm_(kind, max_norm, total)
    return total


def _sketch(build: Build) -> nn.Module:
    """The model without its weights, or with them where its constructor looks at them."""
    try:
        with initialise.sketching():
            return build()
    except (NotImplementedError, RuntimeError) as error:
        log.warning("the model cannot be sketched and is built in full: %s", error)
        return build()


def _num_params(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _from_meta(model: nn.Module, seed: int, device: torch.device) -> str:
    fresh = {name for name, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta}
    initialise.materialise(model, device)
    return f"initialised by {initialise.initialise(model, fresh, seed, device)}"


def _replicate(model: nn.Module, device: torch.device, find_unused_parameters: bool) -> nn.Module:
    wrapped = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=find_unused_parameters,
    )
    settle_buckets(wrapped)
    return wrapped
