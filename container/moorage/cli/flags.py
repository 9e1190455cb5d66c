"""The flags that describe a job, for every command that takes one: each says what a key of moorage.toml says, and wins.

@described
def run(job: Flags, as_json: Json = False) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from moorage.errors import ConfigError

if TYPE_CHECKING:
    from moorage.rehearsal.jobfile import Described

JOB, DATA, MACHINE, SYNC, WRONG = "The job", "Data and settings", "Machine", "Checkpoint upload", "What goes wrong"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """names: on the command line. place: in the job file. takes: a value's type; bool is a switch, and list may be
    repeated. reads: how the texts of a list become what stands in the file, by key, or None where it is a list there.
    """

    names: tuple[str, ...]
    place: tuple[str, ...]
    help: str
    panel: str
    takes: Any = str
    metavar: str | None = None
    reads: Callable[[list[str], Mapping[str, str]], Mapping[str, Any]] | None = None

    @property
    def parameter(self) -> inspect.Parameter:
        kind = list[str] if self.takes is list else self.takes
        option = typer.Option(*self.names, help=self.help, rich_help_panel=self.panel, metavar=self.metavar)
        return inspect.Parameter(
            self.variable, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
        )

    @property
    def variable(self) -> str:
        """Of the function that typer calls."""
        return "flag_" + "_".join(self.place)


def _pairs(what: str) -> Callable[[list[str], Mapping[str, str]], Mapping[str, Any]]:
    def read(texts: list[str], env: Mapping[str, str]) -> Mapping[str, Any]:
        from moorage.rehearsal.spelling import pairs

        return pairs(texts, what)

    return read


def _variables(texts: list[str], env: Mapping[str, str]) -> Mapping[str, Any]:
    """NAME alone is the caller's own, so that a secret stays out of the shell's history."""
    unset = [text for text in texts if "=" not in text and text not in env]
    if unset:
        raise ConfigError(f"--env {unset[0]}: there is no such variable here", fix="export it, or give NAME=VALUE")
    return _pairs("variable")([text if "=" in text else f"{text}={env[text]}" for text in texts], env)


def _channels(texts: list[str], env: Mapping[str, str]) -> Mapping[str, Any]:
    from moorage.rehearsal.spelling import channel_table

    return dict(channel_table(text) for text in texts)


FLAGS = (
    Flag(names=("--image", "-i"), place=("image",), panel=JOB, metavar="IMAGE",
         help="The training image. Without one, hosts are plain processes."),
    Flag(names=("--name",), place=("name",), panel=JOB, metavar="NAME", help="What the job's name begins with."),
    Flag(names=("--source",), place=("source",), panel=JOB, metavar="DIR",
         help="The folder of code; else that of PROGRAM."),
    Flag(names=("--hosts", "-n"), place=("hosts",), takes=int, metavar="N", panel=JOB,
         help="Instances: algo-1, algo-2, ..."),
    Flag(names=("--instance-type",), place=("instance_type",), panel=JOB, metavar="TYPE",
         help="What the job is told it runs on."),
    Flag(names=("--max-run",), place=("max_run",), panel=JOB, metavar="TIME", help="MaxRuntimeInSeconds: 30m, 2h."),
    Flag(names=("--max-wait",), place=("max_wait",), panel=JOB, metavar="TIME",
         help="MaxWaitTimeInSeconds; with it, the job is on Spot."),
    Flag(names=("--retries",), place=("retries",), takes=int, metavar="N", panel=JOB,
         help="Starts after a fault of the machine (RetryStrategy)."),
    Flag(names=("--hyperparameter", "-p"), place=("hyperparameters",), takes=list, panel=DATA, metavar="NAME=VALUE",
         reads=_pairs("hyperparameter"), help="One hyperparameter: -p lr=1e-3."),
    Flag(names=("--data", "-d"), place=("data",), takes=list, panel=DATA, metavar="NAME=PATH", reads=_channels,
         help="One channel: train=data/train, or train=s3://BUCKET/PREFIX, with ,FastFile or ,Pipe, ,sharded, "
         ",type=text/csv behind it."),
    Flag(names=("--env", "-e"), place=("environment",), takes=list, panel=DATA, metavar="NAME[=VALUE]",
         reads=_variables, help="One environment variable; without VALUE, yours."),
    Flag(names=("--setting", "-s"), place=("settings",), takes=list, panel=DATA, metavar="NAME=VALUE",
         reads=_pairs("setting"), help="One of `moorage settings`: -s strategy=fsdp."),
    Flag(names=("--metric",), place=("metrics",), takes=list, panel=DATA, metavar="NAME=REGEX",
         reads=_pairs("metric"), help="One MetricDefinition; else those that `moorage metrics` finds in PROGRAM."),
    Flag(names=("--step-regex",), place=("step_regex",), panel=DATA, metavar="REGEX",
         help="Finds the step in log lines, in its first group."),
    Flag(names=("--client",), place=("rehearsal", "client"), panel=DATA, metavar="CLIENT",
         help="Who encodes hyperparameters and brings the program: sdk-v2, sdk-v3, tuning, plain."),
    Flag(names=("--engine",), place=("rehearsal", "engine"), panel=MACHINE, metavar="ENGINE",
         help="docker, or process: the same without containers."),
    Flag(names=("--ranks-per-host", "-r"), place=("rehearsal", "ranks_per_host"), takes=int, metavar="N", panel=MACHINE,
         help="Ranks on each host; else one per device."),
    Flag(names=("--gpus",), place=("rehearsal", "gpus"), panel=MACHINE, metavar="all|N", help="Of each host."),
    Flag(names=("--shm-size",), place=("rehearsal", "shm_size"), panel=MACHINE, metavar="SIZE",
         help="/dev/shm of each host: 2g."),
    Flag(names=("--memory",), place=("rehearsal", "memory"), panel=MACHINE, metavar="SIZE", help="Of each host: 4g."),
    Flag(names=("--cpus",), place=("rehearsal", "cpus"), takes=float, metavar="N", panel=MACHINE,
         help="Cores of each host."),
    Flag(names=("--platform",), place=("rehearsal", "platform"), panel=MACHINE, metavar="OS/ARCH",
         help="Of the image, where the engine emulates."),
    Flag(names=("--folder",), place=("rehearsal", "folder"), panel=MACHINE, metavar="DIR",
         help="Where runs leave what they made; else runs/."),
    Flag(names=("--checkpoints",), place=("rehearsal", "checkpoints"), panel=SYNC, metavar="DIR|S3URI",
         help="Where checkpoints are uploaded: a folder, or s3://BUCKET/PREFIX; else a folder of the run."),
    Flag(names=("--checkpoint-path",), place=("checkpoint_path",), panel=SYNC, metavar="PATH",
         help="LocalPath in the container."),
    Flag(names=("--checkpoint-config/--no-checkpoint-config",), place=("rehearsal", "checkpoint_config"), takes=bool,
         panel=SYNC, help="Whether the job has a CheckpointConfig; without, nothing survives an interruption."),
    Flag(names=("--sync-delay",), place=("rehearsal", "sync_delay"), panel=SYNC, metavar="TIME",
         help="Until a file that appeared is uploaded."),
    Flag(names=("--sync-bandwidth",), place=("rehearsal", "sync_bandwidth"), panel=SYNC, metavar="RATE",
         help="Of each host's upload: 10MB/s."),
    Flag(names=("--sync-stops-at",), place=("rehearsal", "sync_stops_at"), panel=SYNC, metavar="SHARE",
         help="Cut the upload of an interrupted attempt there: 0.5, 50% or random."),
    Flag(names=("--interrupt",), place=("rehearsal", "interrupt"), takes=list, panel=WRONG, metavar="WHEN",
         help="Take the instances away: step=50, time=30s, every=20s, random:5 (random:5/400 of 400 steps), with "
         ",hard, ,host=algo-2, ,grace=10s behind it."),
    Flag(names=("--hard/--no-hard",), place=("rehearsal", "hard"), takes=bool, panel=WRONG,
         help="Interruptions come without SIGTERM."),
    Flag(names=("--interrupt-host", "--host"), place=("rehearsal", "interrupt_host"), panel=WRONG, metavar="HOST",
         help="Interruptions take this host first."),
    Flag(names=("--grace",), place=("rehearsal", "grace"), panel=WRONG, metavar="TIME",
         help="From SIGTERM to SIGKILL; the platform gives 120 s."),
    Flag(names=("--restart-delay",), place=("rehearsal", "restart_delay"), panel=WRONG, metavar="TIME",
         help="Until Spot has other instances."),
    Flag(names=("--fault",), place=("rehearsal", "fault"), takes=list, panel=WRONG, metavar="FAULT",
         help="kill-rank, kill-host, cut-network, freeze, fill-disk or slow-host, with ,step=40 or ,time=10s, and "
         ",host=algo-2, ,rank=1, ,for=5s."),
    Flag(names=("--seed",), place=("rehearsal", "seed"), takes=int, metavar="N", panel=WRONG,
         help="Of what is drawn at random."),
)  # fmt: skip

_PROGRAM = Annotated[
    str | None, typer.Argument(metavar="PROGRAM", help="The training program: a .py file, a module, a .sh file.")
]
_ARGUMENTS = Annotated[
    list[str] | None, typer.Argument(metavar="ARGS", help="Its own arguments; those with a dash after `--`.")
]
_CONFIG = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The job file; else moorage.toml, where there is one."),
]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What was given on the command line: by place in the job file, with the flag's name."""

    config: Path | None = None
    given: Mapping[tuple[str, ...], tuple[str, Any]] = field(default_factory=dict)

    def describe(self) -> Described:
        """With the job file. Raises ConfigError."""
        from moorage.rehearsal import jobfile

        return jobfile.describe(self.config or jobfile.find(Path()), self.given)


def described(
    env: Mapping[str, str], more: Sequence[Flag] = (), *, rehearsal: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command with a parameter `job: Flags` takes PROGRAM, ARGS, --config and all flags of a job in its place.

    env: of the caller, for `--env NAME`. more: flags for tables of the job file that only this command uses; one of
    the same name as another of a job's takes its place. rehearsal: with the flags of the table of that name.
    """
    own = {name for flag in more for name in flag.names}
    flags = (
        *(flag for flag in FLAGS if (rehearsal or flag.place[0] != "rehearsal") and not own & {*flag.names}),
        *more,
    )

    def changed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            job = _flags(values, flags, env)
            return function(job=job, **values)

        ours = [
            inspect.Parameter("program", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_PROGRAM),
            inspect.Parameter("arguments", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_ARGUMENTS),
            inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_CONFIG),
            *(flag.parameter for flag in flags),
        ]
        hints = get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            for name, parameter in inspect.signature(function).parameters.items()
            if name != "job"
        ]
        command.__signature__ = inspect.Signature([*ours, *own])  # type: ignore[attr-defined]  # typer reads it
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*ours, *own]}
        del command.__wrapped__  # typing would look through it, to annotations as text
        return command

    return changed


def _flags(values: dict[str, Any], flags: Sequence[Flag], env: Mapping[str, str]) -> Flags:
    """Takes the job's own out of `values`."""
    program, arguments, config = (values.pop(name) for name in ("program", "arguments", "config"))
    given: dict[tuple[str, ...], tuple[str, Any]] = {}
    if program is not None:
        given["program",] = ("PROGRAM", program)
    if arguments:
        given["arguments",] = ("ARGS", arguments)
    for flag in flags:
        given.update(_said(flag, values.pop(flag.variable), env))
    return Flags(config=config, given=given)


def _said(flag: Flag, value: Any, env: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], tuple[str, Any]]]:
    if value is None or value == []:
        return
    if flag.reads is None:
        yield flag.place, (flag.names[0].partition("/")[0], value)
        return
    for name, one in flag.reads(value, env).items():
        yield (*flag.place, name), (f"{flag.names[0]} {name}", one)
