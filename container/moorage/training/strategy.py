"""Which strategy a job takes: the least sharding whose parameters, gradients and optimizer state fit a device.

Pure arithmetic on bytes: torch is not imported, so a plan can be tested with made-up devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from moorage.errors import ConfigError

STATE_FRACTION = 0.6
"""Share of a device's memory that parameters, gradients and optimizer state may take. The rest is for what the sum
cannot know: activations, the batch, workspaces and fragmentation."""

GATHERED_GROUPS = 3
"""Unsharded groups on a device at once under fsdp: the block at work, the next one prefetched, and the gradients of
the one before on their way to be reduced."""

STRATEGIES = ("single", "ddp", "hsdp", "fsdp")

_GIB = 2**30
_HALF = 2  # bytes of a bf16 or fp16 number


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """num_params and trainable_params: elements; param_bytes: bytes of all parameters as they are stored; group_params:
    elements of the largest group that fsdp gathers at once (a block, or what is outside of the blocks)."""

    num_params: int
    param_bytes: int
    trainable_params: int
    group_params: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A strategy, and the number of ranks that share one copy of the model: 1 under single and ddp.

    why: one line for the log. fits: False where the sum says that the job will run out of memory.
    """

    strategy: str
    shard_size: int
    why: str
    fits: bool = True


def choose(
    request: str,
    size: ModelSize,
    *,
    precision: str,
    device_memory: int,
    world_size: int,
    ranks_per_host: int,
    shard_size: int = 0,
    optimizer_states: int = 2,
) -> Choice:
    """The strategy for a request: `auto`, or one of STRATEGIES, which is taken as it is.

    device_memory: bytes of one rank's device. shard_size: the setting, 0 for the ranks of a host. optimizer_states:
    tensors that the optimizer keeps for each trainable parameter, 2 for Adam. Raises ConfigError for a request that
    the world size cannot serve.
    """
    if shard_size and world_size % shard_size:
        raise ConfigError(
            f"setting shard_size={shard_size} does not divide the {world_size} ranks of the job",
            why="each copy of the model is spread over that many ranks",
            fix="choose a divisor of the number of ranks, or leave it out for the ranks of a host",
        )
    if request != "auto":
        return _asked(request, world_size=world_size, ranks_per_host=ranks_per_host, shard_size=shard_size)
    room = int(device_memory * STATE_FRACTION)
    tried: list[str] = []
    for strategy, ranks in _candidates(world_size, ranks_per_host, shard_size):
        need, terms = _need(size, ranks, precision, optimizer_states)
        tried.append(f"{_named(strategy, ranks)} needs {_gib(need)} per device ({terms})")
        if need <= room:
            return Choice(
                strategy=strategy, shard_size=ranks, why=f"auto: {'; '.join(tried)}, {_within(device_memory)}"
            )
    why = f"auto: {'; '.join(tried)}, and none fits: it is more than {_within(device_memory, verb='')}"
    remedy = "more devices, a smaller model, precision=bf16 or activation_checkpointing may help"
    return Choice(strategy=strategy, shard_size=ranks, why=f"{why}; going on with {strategy}: {remedy}", fits=False)


def _candidates(world_size: int, ranks_per_host: int, shard_size: int) -> list[tuple[str, int]]:
    """Strategies with the ranks that share a copy, least sharding first."""
    if world_size == 1:
        return [("single", 1)]
    inner = shard_size or ranks_per_host
    hybrid = [("hsdp", inner)] if 1 < inner < world_size and world_size % inner == 0 else []
    return [("ddp", 1), *hybrid, ("fsdp", world_size)]


def _need(size: ModelSize, ranks: int, precision: str, optimizer_states: int) -> tuple[int, str]:
    """Bytes on a device when `ranks` share one copy of the model, and the terms of the sum."""
    trained = size.param_bytes * size.trainable_params // max(1, size.num_params)
    parts = {
        "parameters": size.param_bytes // ranks,
        "gradients": trained // ranks,
        "optimizer": trained * optimizer_states // ranks,
    }
    half = precision != "fp32"
    if ranks > 1:
        width = _HALF if half else size.param_bytes / max(1, size.num_params)
        parts["gathered blocks"] = int(GATHERED_GROUPS * size.group_params * width)
    elif half:
        # Autocast keeps the low-precision copy of each weight from forward to backward.
        parts[f"{precision} copies"] = _HALF * size.num_params
    return sum(parts.values()), " + ".join(f"{name} {_gib(value)}" for name, value in parts.items())


def _asked(request: str, *, world_size: int, ranks_per_host: int, shard_size: int) -> Choice:
    if request not in STRATEGIES:
        raise ConfigError(f"setting strategy={request!r} is not known", fix=f"choose auto, {', '.join(STRATEGIES)}")
    if request == "single" and world_size > 1:
        raise ConfigError(
            f"setting strategy=single cannot serve {world_size} ranks",
            why="each rank would train a model of its own",
            fix="choose auto or ddp, or set ranks_per_host=1 on one host",
        )
    if world_size == 1:
        why = "strategy=single was asked for" if request == "single" else f"one rank has nothing to share by {request}"
        return Choice(strategy="single", shard_size=1, why=why)
    if request == "hsdp":
        return _asked_hsdp(world_size, ranks_per_host, shard_size)
    ranks = world_size if request == "fsdp" else 1
    return Choice(strategy=request, shard_size=ranks, why=f"strategy={request} was asked for")


def _asked_hsdp(world_size: int, ranks_per_host: int, shard_size: int) -> Choice:
    ranks = shard_size or ranks_per_host
    if ranks == 1 or world_size % ranks:
        raise ConfigError(
            f"setting strategy=hsdp cannot spread a copy of the model over {ranks} of {world_size} ranks",
            why="hsdp shards among the ranks of a host and replicates across hosts",
            fix="set shard_size to a divisor of the number of ranks above 1, or choose ddp or fsdp",
        )
    if ranks == world_size:
        return Choice(strategy="fsdp", shard_size=ranks, why=f"hsdp over all {ranks} ranks is fsdp")
    return Choice(strategy="hsdp", shard_size=ranks, why=f"strategy=hsdp was asked for, {ranks} ranks to a copy")


def _named(strategy: str, ranks: int) -> str:
    return f"{strategy} over {ranks} ranks" if ranks > 1 else strategy


def _within(device_memory: int, verb: str = "within ") -> str:
    share = f"{STATE_FRACTION:.0%} of a device's {_gib(device_memory)}"
    return f"{verb}the {_gib(int(device_memory * STATE_FRACTION))} that are {share}, the rest kept for activations"


def _gib(count: int) -> str:
    """Bytes in the unit that shows them best: 12.3 GiB, 4.5 MiB, 900 bytes."""
    for unit, name in ((_GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
