"""The environment by which `accelerate launch` configures an unmodified `Accelerator()` or Hugging Face Trainer script.

Names as in accelerate 1.15, `accelerate/utils/launch.py`: `prepare_simple_launcher_cmd_env`, `prepare_multi_gpu_env`.
"""

from __future__ import annotations

from moorage.cluster import Cluster
from moorage.contract.settings import Settings

_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def accelerate_env(settings: Settings, cluster: Cluster) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables, and what could not be said in them, a sentence each.

    A setting left at its default sets nothing that would override the script's own choice.
    """
    env = {"ACCELERATE_MIXED_PRECISION": _PRECISION[settings.precision]}
    if settings.accumulation > 1:
        env["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(settings.accumulation)
    if settings.compile:
        env["ACCELERATE_DYNAMO_BACKEND"] = "INDUCTOR"
    sharded = settings.strategy in ("fsdp", "hsdp")
    if cluster.devices.kind == "cpu":
        # Without it, ranks on CPU train apart from one another and say nothing.
        env["ACCELERATE_USE_CPU"] = "true"
        if sharded:
            return env, (f"strategy {settings.strategy} is not passed on to accelerate: it does not shard on CPU",)
        return env, ()
    return {**env, **(_fsdp(settings, cluster) if sharded else {})}, ()


def _fsdp(settings: Settings, cluster: Cluster) -> dict[str, str]:
    env = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        # The layers that a Hugging Face model names; a model that names none is sharded as one.
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_ACTIVATION_CHECKPOINTING": str(settings.activation_checkpointing).lower(),
    }
    if settings.strategy == "hsdp":
        shard = settings.shard_size or cluster.ranks_per_host
        env |= {
            "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
            "PARALLELISM_CONFIG_DP_SHARD_SIZE": str(shard),
            "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": str(max(1, cluster.world_size // shard)),
        }
    return env
