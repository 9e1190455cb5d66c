"""Moorage's own settings: MOORAGE_* in the environment, or moorage_* hyperparameters, which win.

Every field below is a setting: `strategy` is MOORAGE_STRATEGY and moorage_strategy. A misspelt one is an error that
names the nearest.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moorage.contract.s3 import Address
from moorage.contract.setting import Given, checked, in_environment, not_negative, positive, setting

HYPERPARAMETER_PREFIX = "moorage_"

OF_SERVE = frozenset(
    (
        "access_log", "body_timeout", "default_accept", "default_content_type", "device", "drain", "emf",
        "emf_dimensions", "handler", "header_timeout", "load_timeout", "max_batch_size", "max_body_mb",
        "max_connections", "max_queue", "max_queue_delay_us", "metrics_port", "num_threads", "request_timeout",
        "stuck_timeout", "unsafe_pickle", "workers",
    )
)  # fmt: skip
"""Settings that are those of `serve` alone (serving/settings.py): the environment of a job may hold them too."""


def is_setting(key: str) -> bool:
    """Whether a hyperparameter is one of ours, which the program never sees."""
    return key.replace("-", "_").startswith(HYPERPARAMETER_PREFIX)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user can choose. The values are typed by their defaults."""

    # launch
    ranks_per_host: int = setting(
        0, "Ranks started on each host; 0 is one per device, or one where there is only a CPU.", check=not_negative
    )
    max_restarts: int = setting(
        3,
        "In-job restarts after a rank failed; none is made when the same step failed three times.",
        check=not_negative,
    )
    grace: float = setting(
        110.0, "Seconds from SIGTERM to the end of the job; the platform kills at 120.", check=positive
    )
    join_timeout: float = setting(600.0, "Seconds to wait for all hosts at the start.", check=positive)
    heartbeat_timeout: float = setting(
        # A network that is back after 10 s is heard of only when TCP tries again: its waits double up to 12.8 s.
        30.0,
        "Seconds of silence after which a host counts as lost. A network cut for a third of them is ridden through.",
        check=positive,
    )
    control_port: int = setting(
        7070, "TCP port on the first host where the supervisors agree.", check=lambda port: 0 < port < 65536
    )
    hang_minutes: str = setting(
        "auto",
        "Minutes without a step after which the job hangs; 0 never looks. auto is 5, or 10 usual steps, or 3 times the "
        "longest step so far. Start, evaluation, saves and finish have 6 times as long.",
        check=lambda text: text == "auto" or not_negative(_number(text)),
    )
    on_hang: str = setting(
        "restart",
        "What follows when the job hangs: a restart of all ranks, the end of the job, or a warning.",
        choices=("restart", "fail", "warn"),
    )
    straggler_seconds: float = setting(
        30.0,
        "Seconds over which ranks are compared; a host that is slower than the others three times in a row is named. 0 "
        "compares nothing.",
        check=not_negative,
    )
    # training
    strategy: str = setting(
        "auto", "How the model is spread over the ranks.", choices=("auto", "single", "ddp", "fsdp", "hsdp")
    )
    shard_size: int = setting(
        0, "Ranks that share one copy of the model under hsdp; 0 is all ranks of a host.", check=not_negative
    )
    precision: str = setting("fp32", "Arithmetic of forward and backward.", choices=("fp32", "bf16", "fp16"))
    accumulation: int = setting(1, "Micro-batches per optimizer step.", check=positive)
    clip_norm: float = setting(0.0, "Largest gradient norm; 0 clips nothing.", check=not_negative)
    compile: bool = setting(False, "Compile the model with torch.compile.")
    activation_checkpointing: bool = setting(False, "Recompute activations of repeated blocks in the backward pass.")
    seed: int = setting(0, "Seed of the model, the data order and the ranks' random numbers.", check=not_negative)
    log_every: int = setting(50, "Steps between two metric lines; 0 logs only what is reported.", check=not_negative)
    trackers: tuple[str, ...] = setting(
        (), "Experiment trackers fed from rank 0 through accelerate, such as tensorboard or mlflow."
    )
    # checkpoints
    checkpoint_minutes: str = setting(
        "auto",
        "Minutes between checkpoints; 0 saves by steps only. auto chooses, unless checkpoint_steps is set: the first "
        "after 30 s of training, then every 1 to 60 minutes, by what a save was measured to take and "
        "interruption_hours.",
        check=lambda text: text == "auto" or not_negative(_number(text)),
    )
    checkpoint_steps: int = setting(0, "Steps between checkpoints; 0 saves by time only.", check=not_negative)
    interruption_hours: float = setting(
        6.0,
        "Mean hours between two interruptions of the job without warning, assumed where checkpoint_minutes is "
        "auto; a stop by SIGTERM loses nothing and does not count.",
        check=positive,
    )
    staging: str = setting(
        "overlap",
        "When a checkpoint copies weights and optimizer state: overlap goes on with it during the next forward and "
        "backward pass, pause has it done before training goes on.",
        choices=("overlap", "pause"),
    )
    keep: int = setting(2, "Newest checkpoints kept, beside the best.", check=positive)
    keep_every: int = setting(
        0,
        "Steps; the first checkpoint at or after each multiple is kept for good. 0 keeps none so.",
        check=not_negative,
    )
    checkpoint_s3: str = setting(
        "",
        "Where in S3 checkpoints are written to directly, with no copy on a disk: s3://BUCKET/PREFIX, which no other "
        "job writes to. Empty: the checkpoint folder.",
        check=lambda text: not text or Address.parse(text) is not None,
    )
    checkpoint_s3_owner: str = setting(
        "",
        "Account, 12 digits, that the bucket of checkpoint_s3 must belong to; empty for any.",
        check=lambda text: bool(re.fullmatch(r"([0-9]{12})?", text)),
    )
    upload_agent: str = setting(
        "auto",
        "Whether the platform uploads the checkpoint folder, so that old checkpoints go only once newer ones are in "
        "S3; auto is where the job has a CheckpointConfig, or the agent's marks are seen.",
        choices=("auto", "on", "off"),
    )
    upload_minutes: float = setting(
        10.0,
        "Minutes that a file may wait to be uploaded before a warning; 0 never warns.",
        check=not_negative,
    )
    warm_start: str = setting(
        "",
        "What a job without a checkpoint of its own begins with: the folder of another job's checkpoints, one of "
        "them, or a folder with model.safetensors; as a path, or as CHANNEL or CHANNEL/FOLDER.",
    )
    warm_start_what: str = setting(
        "weights",
        "weights: those of the tracked models, and training begins at step 0. all: everything tracked, and training "
        "goes on at the step of that checkpoint.",
        choices=("weights", "all"),
    )
    best: str = setting(
        "",
        "Reported metric that names the best checkpoint, as max:val_accuracy or min:val_loss.",
        check=lambda text: not text or bool(re.fullmatch(r"(min|max):[^\s:=]+", text)),
    )
    patience: int = setting(
        0, "Reports without a better metric after which training ends early; 0 never does.", check=not_negative
    )

    @property
    def checkpoint_seconds(self) -> float | None:
        """Between checkpoints by the clock; 0 is never, None to choose."""
        if self.checkpoint_minutes != "auto":
            return 60 * _number(self.checkpoint_minutes)
        return 0.0 if self.checkpoint_steps else None

    @property
    def hang_seconds(self) -> float | None:
        """Without a step, until the job hangs; 0 is never, None to choose."""
        return None if self.hang_minutes == "auto" else 60 * _number(self.hang_minutes)

    @classmethod
    def read(
        cls, env: Mapping[str, str], hyperparameters: Mapping[str, str], defaults: Mapping[str, Any] | None = None
    ) -> Settings:
        """Program defaults, then MOORAGE_*, then moorage_*; a default of None and an empty variable say nothing.

        Raises ConfigError for a misspelt name, a value of the wrong type, or one outside its choices or bounds.
        """
        given = [
            Given(name=name, value=value, source=f"moorage.start({name}=...)")
            for name, value in (defaults or {}).items()
            if value is not None or name not in _NAMES
        ]
        given += in_environment(env, beside=OF_SERVE)
        given += [
            Given(
                name=key.replace("-", "_").removeprefix(HYPERPARAMETER_PREFIX),
                value=text,
                source=f"hyperparameter {key}",
            )
            for key, text in hyperparameters.items()
            if is_setting(key)
        ]
        return cls(**checked(cls, given, beside=OF_SERVE))


_NAMES = {field.name for field in dataclasses.fields(Settings)}
