"""Shard a model over a device mesh with fully_shard, and give it its first weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from moorage.errors import ConfigError
from moorage.training import initialise
from moorage.training.blocks import Named
from moorage.training.precision import Precision
from moorage.training.strategy import Choice


def shard(
    model: nn.Module, groups: list[Named], choice: Choice, *, precision: Precision, seed: int, device: torch.device
) -> list[str]:
    """Shard `model` in place, group by group and what is left as one more, and give it its first weights. Collective.

    Says what was done. Raises ConfigError for a model that torch cannot shard, or that nothing initialises.
    """
    _check_alike(model)
    held = initialise.take_weights(model, keep=dist.get_rank() == 0)
    mesh = _mesh(choice, device)
    try:
        for module in _kept_in_fp32(model, groups) if precision.dtype is not None else ():
            fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        for _, group in groups:
            if not isinstance(group, FSDPModule):
                fully_shard(group, mesh=mesh, mp_policy=precision.policy())
        fully_shard(model, mesh=mesh, mp_policy=precision.policy(root=True))
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"strategy {choice.strategy} cannot shard the model", why=str(error), fix="mend that, or use strategy=ddp"
        ) from error
    done = [f"{len(groups)} groups over {choice.shard_size} ranks", *_fill(model, held, seed, device)]
    _share_statistics(model)
    return done


def _check_alike(model: nn.Module) -> None:
    """Else the ranks would wait for each other in different collectives."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    mine = {name: f"{tuple(t.shape)} {t.dtype}" for name, t in tensors}
    every: list[Any] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, mine)
    for rank, other in enumerate(every):
        odd = sorted(name for name in {**every[0], **other} if every[0].get(name) != other.get(name))
        if odd:
            first, theirs = every[0].get(odd[0], "absent"), other.get(odd[0], "absent")
            raise ConfigError(
                f"ranks 0 and {rank} have built different models: {odd[0]} is {first} and {theirs}",
                fix="build the model alike on all ranks",
            )


def _mesh(choice: Choice, device: torch.device) -> DeviceMesh:
    world_size = dist.get_world_size()
    if choice.strategy == "fsdp":
        return init_device_mesh(device.type, (world_size,), mesh_dim_names=("shard",))
    shape = (world_size // choice.shard_size, choice.shard_size)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def _kept_in_fp32(model: nn.Module, groups: list[Named]) -> list[nn.Module]:
    """Normalisations that get groups of their own under low precision, since on the CPU they take no parameters
    narrower than their input, which may be fp32 outside of the blocks, or than their statistics, which always are."""
    inside = {module for _, group in groups for module in group.modules()}
    return [
        module
        for module in model.modules()
        if module is not model
        and (
            isinstance(module, _BatchNorm)
            or (isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and module not in inside)
        )
        and next(module.parameters(), None) is not None
    ]


def _fill(model: nn.Module, held: initialise.Tensors, seed: int, device: torch.device) -> list[str]:
    """Give the sharded model its first weights."""
    names: list[Any] = [sorted(held)]
    dist.broadcast_object_list(names, src=0)
    given = set(names[0])
    fresh = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]} - given
    initialise.materialise(model, device)
    by = f"initialised by {initialise.initialise(model, fresh, seed, device)}" if fresh else ""
    initialise.hand_out(model, held, given, device)
    return [by] if by else []


def _share_statistics(model: nn.Module) -> None:
    """Running statistics follow rank 0 before each forward, as under ddp: else each rank would evaluate, and a resumed
    job go on, with statistics of its own."""
    modules = [m for m in model.modules() if isinstance(m, _NormBase) and not isinstance(m, nn.SyncBatchNorm)]
    statistics = [buffer for module in modules for buffer in module.buffers(recurse=False)]
    if not statistics:
        return

    def share(module: nn.Module, args: Any) -> None:
        for buffer in statistics:
            dist.broadcast(buffer, src=0)

    model.register_forward_pre_hook(share)
