"""A `Job` from what the job file and the flags describe, with what neither of them said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from moorage.contract.metrics import metric_definitions, metric_names
from moorage.contract.s3 import SCHEME
from moorage.contract.setting import ENV_PREFIX
from moorage.contract.settings import Settings
from moorage.errors import ConfigError, ProgramError
from moorage.rehearsal import jobschema, spelling
from moorage.rehearsal.job import STEP, Channel, Fault, Interruption, Job
from moorage.rehearsal.jobfile import Described

RUNS = Path("runs")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def assemble(described: Described, now: datetime) -> Job:
    """The job to rehearse, in a folder of its own that is not there yet. now: for its name, as the SDKs do.

    Raises ConfigError and ProgramError for what cannot be rehearsed.
    """
    said = described.job
    machine = said.rehearsal
    source, program = program_of(said.source, said.program)
    name = job_name(said.name or (Path(program).stem if program else "job"), now)
    return Job(
        name=name,
        folder=Path(machine.folder or RUNS) / name,
        program=program,
        source=source,
        arguments=tuple(said.arguments),
        image=said.image,
        engine=machine.engine or ("docker" if said.image else "process"),
        platform=machine.platform,
        data={key: _channel(key, table) for key, table in said.data.items()},
        hyperparameters={key: typed(value) for key, value in said.hyperparameters.items()},
        client=machine.client,
        hosts=said.hosts,
        ranks_per_host=machine.ranks_per_host,
        gpus=machine.gpus,
        shm_size=machine.shm_size,
        memory=machine.memory,
        cpus=machine.cpus,
        env={**said.environment, **settings(described)},
        instance_type=said.instance_type,
        checkpoints=_checkpoints(machine.checkpoints),
        checkpoint_config=machine.checkpoint_config,
        checkpoint_path=said.checkpoint_path,
        sync_delay=machine.sync_delay,
        sync_bandwidth=machine.sync_bandwidth,
        sync_stops_at=machine.sync_stops_at,
        interruptions=_interruptions(machine),
        faults=tuple(spelling.fault(text) for text in machine.fault),
        retries=said.retries,
        grace=machine.grace,
        restart_delay=machine.restart_delay,
        max_run=said.max_run,
        max_wait=said.max_wait,
        metrics=said.metrics or metrics_of(source, program),
        step_regex=said.step_regex or STEP,
        seed=machine.seed,
    )


def typed(value: Any) -> str:
    """A hyperparameter of the file as somebody would type it at a flag."""
    return value if isinstance(value, str) else json.dumps(value, allow_nan=False)


def program_of(source: str | None, program: str | None) -> tuple[Path | None, str | None]:
    """The folder of code, and the program in it. Without a folder, it is that of the program."""
    if program is None:
        return (Path(source) if source else None), None
    path = Path(program).expanduser()
    if source is None:
        if path.is_file():
            return path.parent, path.name
        if _is_module(program):
            return Path(), program
        raise ProgramError(
            f"there is no program {program}", why=f"looked for in {Path.cwd()}", fix="give the path of its file"
        )
    home = Path(source)
    if (home / path).is_file() or (home.is_dir() and _is_module(program)):
        return home, program
    if path.is_file() and path.resolve().is_relative_to(home.resolve()):
        return home, str(path.resolve().relative_to(home.resolve()))
    if not home.is_dir():
        raise ConfigError(f"there is no folder of code {home}", fix="name the folder that holds the program")
    raise ProgramError(
        f"there is no program {program} in {home}", fix="name a file of that folder, or another folder by --source"
    )


def _is_module(program: str) -> bool:
    return bool(_MODULE.fullmatch(program)) and not program.endswith((".py", ".sh"))


def job_name(base: str, now: datetime) -> str:
    """BASE-2026-01-31-12-00-00-123456, in letters, digits and single '-', at most 63 (CreateTrainingJob).

    To the microsecond, where the SDKs have milliseconds: two may be started at once.
    """
    moment = f"{now:%Y-%m-%d-%H-%M-%S-%f}"
    clean = re.sub(r"[^A-Za-z0-9]+", "-", base).strip("-") or "job"
    return f"{clean[: 62 - len(moment)].rstrip('-')}-{moment}"


def _channel(name: str, table: jobschema.ChannelTable) -> Channel:
    if table.path is None:
        raise ConfigError(
            f"channel {name} has no folder on this machine",
            why=f"only {table.s3} is named, and a rehearsal takes its data from a folder",
            fix=f'name one: --data {name}=PATH, or in the job file {name} = {{ path = "PATH", s3 = "{table.s3}" }}',
        )
    return Channel(
        path=Path(table.path).expanduser(), mode=table.mode, sharded=table.sharded, content_type=table.content_type
    )


def _checkpoints(text: str | None) -> Path | str | None:
    return text if text is None or text.startswith(SCHEME) else Path(text).expanduser()


def _interruptions(machine: jobschema.Rehearsal) -> tuple[Interruption, ...]:
    return tuple(
        spelling.interruption(text, hard=machine.hard, host=machine.interrupt_host, grace=machine.grace)
        for text in machine.interrupt
    )


def interruptions_and_faults(job: Job) -> list[str]:
    """As flags spell them, for what is told at the start."""
    events: list[Interruption | Fault] = [*job.interruptions, *job.faults]
    return [spelling.spelled(event) for event in events]


def settings(described: Described) -> Mapping[str, str]:
    """[settings] as the environment variables that `train` reads; a misspelt one is an error here already."""
    env: dict[str, str] = {}
    for name, value in described.job.settings.items():
        text = ",".join(map(typed, value)) if isinstance(value, list) else typed(value)
        given = {f"{ENV_PREFIX}{name.upper()}": text}
        try:
            Settings.read(given, {})
        except ConfigError as error:
            where = described.where("settings", name)
            raise ConfigError(
                f"{where}: settings.{name} is wrong", why=error.what, fix=error.fix or error.why
            ) from None
        env |= given
    return env


def metrics_of(source: Path | None, program: str | None) -> Mapping[str, str]:
    """The MetricDefinitions that `moorage metrics` would print for the program; none where there is nothing to read."""
    path = source / program if source is not None and program else None
    if path is None or path.suffix != ".py" or not path.is_file():
        return {}
    return {entry["Name"]: entry["Regex"] for entry in metric_definitions(metric_names(path))[:40]}
