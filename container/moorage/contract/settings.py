"""Moorage's own settings: MOORAGE_* in the environment, or moorage_* hyperparameters, which win.

Every field below is a setting: `strategy` is MOORAGE_STRATEGY and moorage_strategy. A misspelt one is an error that
names the nearest.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage.contract.s3 import Address
from moorage.contract.values import convert
from moorage.errors import ConfigError

ENV_PREFIX = "MOORAGE_"
HYPERPARAMETER_PREFIX = "moorage_"

INTERNAL = frozenset({"MOORAGE_RUN_FOLDER", "MOORAGE_BENCH", "MOORAGE_CHAOS", "MOORAGE_TEST_IMAGE"})
"""Set by us for our own processes: not settings, so not checked as such."""


def is_setting(key: str) -> bool:
    """Whether a hyperparameter is one of ours, which the program never sees."""
    return key.replace("-", "_").startswith(HYPERPARAMETER_PREFIX)


def setting(
    default: Any, doc: str, *, choices: tuple[str, ...] = (), check: Callable[[Any], bool] | None = None
) -> Any:
    """A field that documents itself; `moorage settings` prints the docs."""
    return field(default=default, metadata={"doc": doc, "choices": choices, "check": check})


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf


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
        0, "Ranks started on each host; 0 is one per device, or one where there is only a CPU.", check=_not_negative
    )
    max_restarts: int = setting(
        3,
        "In-job restarts after a rank failed; none is made when the same step failed three times.",
        check=_not_negative,
    )
    grace: float = setting(
        110.0, "Seconds from SIGTERM to the end of the job; the platform kills at 120.", check=_positive
    )
    join_timeout: float = setting(600.0, "Seconds to wait for all hosts at the start.", check=_positive)
    heartbeat_timeout: float = setting(
        # A network that is back after 10 s is heard of only when TCP tries again: its waits double up to 12.8 s.
        30.0,
        "Seconds of silence after which a host counts as lost. A network cut for a third of them is ridden through.",
        check=_positive,
    )
    control_port: int = setting(
        7070, "TCP port on the first host where the supervisors agree.", check=lambda port: 0 < port < 65536
    )
    hang_minutes: str = setting(
        "auto",
        "Minutes without a step after which the job hangs; 0 never looks. auto is 5, or 10 usual steps, or 3 times the "
        "longest step so far. Start, evaluation, saves and finish have 6 times as long.",
        check=lambda text: text == "auto" or _not_negative(_number(text)),
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
        check=_not_negative,
    )
    # training
    strategy: str = setting(
        "auto", "How the model is spread over the ranks.", choices=("auto", "single", "ddp", "fsdp", "hsdp")
    )
    shard_size: int = setting(
        0, "Ranks that share one copy of the model under hsdp; 0 is all ranks of a host.", check=_not_negative
    )
    precision: str = setting("fp32", "Arithmetic of forward and backward.", choices=("fp32", "bf16", "fp16"))
    accumulation: int = setting(1, "Micro-batches per optimizer step.", check=_positive)
    clip_norm: float = setting(0.0, "Largest gradient norm; 0 clips nothing.", check=_not_negative)
    compile: bool = setting(False, "Compile the model with torch.compile.")
    activation_checkpointing: bool = setting(False, "Recompute activations of repeated blocks in the backward pass.")
    seed: int = setting(0, "Seed of the model, the data order and the ranks' random numbers.", check=_not_negative)
    log_every: int = setting(50, "Steps between two metric lines; 0 logs only what is reported.", check=_not_negative)
    trackers: tuple[str, ...] = setting(
        (), "Experiment trackers fed from rank 0 through accelerate, such as tensorboard or mlflow."
    )
    # checkpoints
    checkpoint_minutes: str = setting(
        "auto",
        "Minutes between checkpoints; 0 saves by steps only. auto chooses, unless checkpoint_steps is set: the first "
        "after 30 s of training, then every 1 to 60 minutes, by what a save was measured to take and "
        "interruption_hours.",
        check=lambda text: text == "auto" or _not_negative(_number(text)),
    )
    checkpoint_steps: int = setting(0, "Steps between checkpoints; 0 saves by time only.", check=_not_negative)
    interruption_hours: float = setting(
        6.0,
        "Mean hours between two interruptions of the job without warning, assumed where checkpoint_minutes is "
        "auto; a stop by SIGTERM loses nothing and does not count.",
        check=_positive,
    )
    staging: str = setting(
        "overlap",
        "When a checkpoint copies weights and optimizer state: overlap goes on with it during the next forward and "
        "backward pass, pause has it done before training goes on.",
        choices=("overlap", "pause"),
    )
    keep: int = setting(2, "Newest checkpoints kept, beside the best.", check=_positive)
    keep_every: int = setting(
        0,
        "Steps; the first checkpoint at or after each multiple is kept for good. 0 keeps none so.",
        check=_not_negative,
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
        check=_not_negative,
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
        0, "Reports without a better metric after which training ends early; 0 never does.", check=_not_negative
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
        values: dict[str, Any] = {}
        for name, value in (defaults or {}).items():
            if value is not None or name not in _FIELDS:
                values[name] = _checked(name, value, f"moorage.start({name}=...)")
        for key, text in env.items():
            if key.startswith(ENV_PREFIX) and key not in INTERNAL and text.strip():
                name = key.removeprefix(ENV_PREFIX).lower()
                values[name] = _checked(name, text, f"environment variable {key}")
        for key, text in hyperparameters.items():
            if is_setting(key):
                name = key.replace("-", "_").removeprefix(HYPERPARAMETER_PREFIX)
                values[name] = _checked(name, text, f"hyperparameter {key}")
        return cls(**values)


_FIELDS = {f.name: f for f in dataclasses.fields(Settings)}


def _checked(name: str, value: Any, source: str) -> Any:
    if name not in _FIELDS:
        near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(sorted(_FIELDS))}"
        raise ConfigError(f"{source}: moorage has no setting {name!r}", fix=hint)
    field_ = _FIELDS[name]
    value = convert(value, field_.default, source)
    choices, check = field_.metadata["choices"], field_.metadata["check"]
    if value is None:
        raise ConfigError(f"{source}: None is not a {name}", fix="leave it out for the default")
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(choices)}"
        raise ConfigError(f"{source}: {value!r} is not a {name}", fix=hint)
    if check and not check(value):
        raise ConfigError(f"{source}: {value!r} is not a {name}", why=field_.metadata["doc"])
    return value
