"""What is rehearsed: one training job as CreateTrainingJob would describe it, and what is to go wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from moorage.contract.config import CHANNEL_NAME
from moorage.errors import ConfigError

Engine = Literal["docker", "process"]
InputMode = Literal["File", "FastFile", "Pipe"]
Client = Literal["sdk-v2", "sdk-v3", "tuning", "plain"]
FaultKind = Literal["kill-rank", "kill-host", "cut-network", "freeze", "fill-disk", "slow-host"]

GRACE = 120.0
"""Seconds from SIGTERM to SIGKILL (StopTrainingJob)."""

STEP = r"(?i)(?:^|[\s\[{(,'\"#])(?:global[_ ])?step[\s'\"]*[=:]?\s*(\d+)"
"""The step of a line that a program writes: `#metric step=120`, `step 12/90`, `{"step": 3}`."""

JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One input channel. path: the folder, or the one file, that stands for its S3 prefix.

    sharded: ShardedByS3Key, each host is given about 1/n of the files.
    """

    path: Path
    mode: InputMode = "File"
    sharded: bool = False
    content_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """Spot takes the instances away; the job is started again under its name.

    Exactly one of: step, once the job has come so far; time, seconds after the training of the first attempt began;
    every, seconds after the training of each attempt began; random, so many interruptions at steps drawn by the job's
    seed. among: the steps of the whole job that `random` draws from; None where nobody knows them.
    hard: SIGKILL at once. host: the one that is taken first, the others follow when it is gone; None takes all at once.
    grace: seconds from SIGTERM to SIGKILL.
    """

    step: int | None = None
    time: float | None = None
    every: float | None = None
    random: int | None = None
    among: int | None = None
    hard: bool = False
    host: str | None = None
    grace: float = GRACE


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something breaks, and nobody told the job. It happens once, in whichever attempt comes to it.

    Exactly one of step and time, as an `Interruption` has them. host: None is the last one. rank: the local rank that
    kill-rank kills. duration: seconds that cut-network, freeze, slow-host and fill-disk last; 0 is to the end of the
    attempt.
    """

    kind: FaultKind
    step: int | None = None
    time: float | None = None
    host: str | None = None
    rank: int = 0
    duration: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rehearsal. Raises ConfigError for what CreateTrainingJob, or this machine, would refuse.

    program: the entry point in `source`, the folder of code; None leaves it to the image. arguments: of the program,
    beside the hyperparameters (ContainerArguments `train PROGRAM ARGUMENTS`).
    image: for the engine docker. hyperparameters: as typed; `client` says how they are encoded on their way.
    ranks_per_host: MOORAGE_RANKS_PER_HOST; None leaves it to what the container finds. ranks_by_attempt: the same for
    the first attempt, the second, ...; the last goes on; empty is ranks_per_host for all.
    gpus, shm_size, memory, cpus: as `docker run` has them: "all" or a number, "64m", "2g", 1.5. None: the engine's own.
    checkpoints: the folder, or s3://bucket/prefix, that stands for CheckpointConfig.S3Uri; None is a folder of the
    run. checkpoint_config: whether the job has a CheckpointConfig at all; without one nothing survives an interruption.
    checkpoint_path: its LocalPath.
    sync_delay: seconds before a file that appeared is uploaded. sync_bandwidth: bytes per second of each host, 0 is
    without limit. sync_stops_at: how far an attempt's upload comes before it is cut, as a share of 1 of what there is
    to upload when the attempt is interrupted; None cuts nothing. "random" draws it anew each time.
    retries: RetryStrategy, how often a job that a fault of a machine ended is started again.
    restart_delay: seconds until Spot has other instances; not billable. max_wait: seconds, MaxWaitTimeInSeconds, from
    the job's creation; None for a job that is not on Spot.
    metrics: name -> regex (MetricDefinitions). step_regex: finds the step in lines of the log, where step-triggered
    events look for it.
    folder: where everything of this run goes; it must not exist, or be empty. name: TrainingJobName.
    """

    name: str
    folder: Path
    program: str | None = None
    source: Path | None = None
    arguments: tuple[str, ...] = ()
    image: str | None = None
    engine: Engine = "docker"
    platform: str | None = None
    data: Mapping[str, Channel] = field(default_factory=dict)
    hyperparameters: Mapping[str, str] = field(default_factory=dict, repr=False)
    client: Client = "sdk-v2"
    hosts: int = 1
    ranks_per_host: int | None = None
    ranks_by_attempt: tuple[int, ...] = ()
    gpus: str | None = None
    shm_size: str | None = None
    memory: str | None = None
    cpus: float | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    instance_type: str = "local"
    checkpoints: Path | str | None = None
    checkpoint_config: bool = True
    checkpoint_path: str = "/opt/ml/checkpoints"
    sync_delay: float = 0.0
    sync_bandwidth: float = 0.0
    sync_stops_at: float | Literal["random"] | None = None
    interruptions: tuple[Interruption, ...] = ()
    faults: tuple[Fault, ...] = ()
    retries: int = 3
    grace: float = GRACE
    restart_delay: float = 0.0
    max_run: float = 86_400.0
    max_wait: float | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    step_regex: str = STEP
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("data", "hyperparameters", "env", "metrics"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        _check(self)

    @property
    def host_names(self) -> tuple[str, ...]:
        """algo-1, ... in the order of their numbers; loopback addresses where hosts are processes."""
        if self.engine == "process" and self.hosts > 1:
            return tuple(f"127.0.0.{number}" for number in range(1, self.hosts + 1))
        return tuple(f"algo-{number}" for number in range(1, self.hosts + 1))

    def host_named(self, name: str | None) -> str:
        """`algo-2` is the second host on either engine; None is the last one. Raises ConfigError."""
        if name is None:
            return self.host_names[-1]
        named = dict(zip((f"algo-{number}" for number in range(1, self.hosts + 1)), self.host_names, strict=True))
        if name in named or name in self.host_names:
            return named.get(name, name)
        raise ConfigError(
            f"the job has no host {name!r}", why=f"its hosts are: {', '.join(named)}", fix="name one of them"
        )


def _check(job: Job) -> None:
    if not JOB_NAME.fullmatch(job.name):
        raise ConfigError(
            f"{job.name!r} is not a name for a training job", fix="use letters, digits and single '-', at most 63"
        )
    if job.engine == "docker" and not job.image:
        raise ConfigError("the job has no image", fix="name one by --image, or use --engine process")
    for what, value, choices in (("engine", job.engine, Engine), ("client", job.client, Client)):
        _choice(what, value, get_args(choices))
    _numbers(job)
    _channels(job)
    for name, regex in {**job.metrics, "step": job.step_regex}.items():
        _regex(name, regex)
    for host in [event.host for event in job.interruptions] + [event.host for event in job.faults]:
        job.host_named(host)
    for interruption in job.interruptions:
        _one_of(interruption, "step", "time", "every", "random")
    for fault in job.faults:
        _choice("fault", fault.kind, get_args(FaultKind))
        _one_of(fault, "step", "time")
    if job.source is not None and not job.source.is_dir():
        raise ConfigError(f"there is no folder of code {job.source}", fix="name the folder that holds the program")
    if job.program is not None and job.source is None:
        raise ConfigError(f"the program {job.program!r} has no folder of code", fix="name the folder it lies in")


def _numbers(job: Job) -> None:
    wrong = [
        name
        for name, holds in {
            "hosts": 1 <= job.hosts <= 250,
            "ranks_per_host": job.ranks_per_host is None or job.ranks_per_host >= 1,
            "ranks_by_attempt": all(ranks >= 1 for ranks in job.ranks_by_attempt),
            "cpus": job.cpus is None or job.cpus > 0,
            "grace": job.grace >= 0,
            "sync_delay": job.sync_delay >= 0,
            "sync_bandwidth": job.sync_bandwidth >= 0,
            "sync_stops_at": job.sync_stops_at in (None, "random") or 0 <= float(job.sync_stops_at or 0) <= 1,
            "restart_delay": job.restart_delay >= 0,
            "retries": job.retries >= 0,
            "max_run": job.max_run > 0,
            "max_wait": job.max_wait is None or job.max_wait > 0,
        }.items()
        if not holds
    ]
    if wrong:
        raise ConfigError(
            f"{wrong[0]} cannot be {getattr(job, wrong[0])!r}", fix="`moorage run --help` says what it may be"
        )
    if job.max_wait is not None and job.max_wait < job.max_run:
        raise ConfigError(
            f"max_wait {job.max_wait:g} s is less than max_run {job.max_run:g} s",
            why="CreateTrainingJob refuses that: the wait includes the run",
            fix="raise max_wait, or leave it out",
        )


def _channels(job: Job) -> None:
    if len(job.data) > 20:
        raise ConfigError(
            f"the job has {len(job.data)} channels, more than 20", why="CreateTrainingJob refuses it", fix="join some"
        )
    for name, channel in job.data.items():
        if not CHANNEL_NAME.fullmatch(name) or name in (".", ".."):
            raise ConfigError(f"{name!r} is not a channel name", fix="use letters, digits, '.', '-', '_', at most 64")
        _choice("input mode", channel.mode, get_args(InputMode))
        if not channel.path.exists():
            raise ConfigError(
                f"channel {name}: there is nothing at {channel.path}",
                fix=f"give a path that exists: --data {name}=PATH",
            )


def _regex(name: str, regex: str) -> None:
    try:
        groups = re.compile(regex).groups
    except re.error as error:
        raise ConfigError(f"the regex of the metric {name!r} is not one", why=str(error), fix="correct it") from None
    if not groups:
        raise ConfigError(
            f"the regex of the metric {name!r} has no group",
            why="the platform takes the value from the first one",
            fix=f"put parentheses around the number: {name}=([0-9.]+)",
        )


def _one_of(event: Interruption | Fault, *names: str) -> None:
    given = [name for name in names if getattr(event, name) is not None]
    if len(given) != 1 or getattr(event, given[0]) <= 0:
        raise ConfigError(
            f"{type(event).__name__.lower()}: when is it to come?", why=f"{event!r}", fix=f"one of {', '.join(names)}"
        )


def _choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{value!r} is not one of the choices for {what}", fix=f"choose one of {', '.join(choices)}")
