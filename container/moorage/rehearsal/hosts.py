"""The folder of each host, laid out as the platform mounts it at /opt/ml, and the plan of its container. Pure but for
the files it writes.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage.errors import ConfigError
from moorage.rehearsal import channels, clients
from moorage.rehearsal.channels import Pipe
from moorage.rehearsal.job import Channel, Job

ML = Path("/opt/ml")
_CONTENT = ("input/config", "input/data", "model", "output/data", "checkpoints")


@dataclass(frozen=True, kw_only=True)
class Mount:
    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """One host of one attempt.

    ml: the folder that is /opt/ml. inside: where the container sees it. checkpoints: what the agent syncs, None without
    a CheckpointConfig. checkpoint_path: where the container sees that. interface: of resourceconfig.json.
    """

    name: str
    index: int
    ml: Path
    inside: Path
    interface: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    checkpoints: Path | None
    checkpoint_path: Path
    mounts: tuple[Mount, ...]


def plan(job: Job, home: Path, extra: Mapping[str, str] | None = None, *, attempt: int = 1) -> tuple[HostPlan, ...]:
    """Those of one attempt, below `home`. extra: environment that the engine needs. Raises ConfigError."""
    env = {**clients.environment(job, attempt), **(extra or {})}
    return tuple(_host(job, index, name, home / f"algo-{index + 1}", env) for index, name in enumerate(job.host_names))


def _host(job: Job, index: int, name: str, home: Path, env: Mapping[str, str]) -> HostPlan:
    ml = (home / "ml").absolute()
    docker = job.engine == "docker"
    inside = ML if docker else ml
    path = Path(job.checkpoint_path)
    if not path.is_absolute():
        raise ConfigError(
            f"checkpoint_path {job.checkpoint_path!r} is not absolute", fix="give one such as /opt/ml/checkpoints"
        )
    mounts = [Mount(source=ml, target=str(ML))] if docker else []
    if path.is_relative_to(ML):
        folder = ml / path.relative_to(ML)
        seen = inside / path.relative_to(ML)
    else:
        folder = (home / "checkpoints").absolute()
        seen = path if docker else folder
        mounts += [Mount(source=folder, target=str(path))] if docker else []
    if docker:
        mounts += [
            Mount(source=_fast(home, key, channel), target=f"{ML}/input/data/{key}", read_only=True)
            for key, channel in job.data.items()
            if channel.mode == "FastFile"
        ]
    return HostPlan(
        name=name,
        index=index,
        ml=ml,
        inside=inside,
        interface="eth0" if docker else "lo",
        command=clients.command(job),
        env=env,
        checkpoints=folder if job.checkpoint_config else None,
        checkpoint_path=seen,
        mounts=tuple(mounts),
    )


def _fast(home: Path, name: str, channel: Channel) -> Path:
    """What is mounted: the folder itself, unless only some of its files are the host's."""
    if channel.path.is_dir() and not channel.sharded:
        return channel.path.resolve()
    return (home / "fastfile" / name).absolute()


def config_files(job: Job, host: HostPlan) -> dict[str, Any]:
    """Every file of input/config, by its name."""
    names = list(job.host_names)
    # The platform does not sort them.
    random.Random(f"{job.seed}-{job.name}").shuffle(names)
    group = {"instance_group_name": "homogeneousCluster", "instance_type": job.instance_type, "hosts": names}
    files: dict[str, Any] = {
        "hyperparameters": clients.hyperparameters(job, str(host.inside / "code")),
        "resourceconfig": {
            "current_host": host.name,
            "current_instance_type": job.instance_type,
            "current_group_name": group["instance_group_name"],
            "hosts": names,
            "instance_groups": [group],
            "network_interface_name": host.interface,
            "topology": None,
        },
        "inputdataconfig": {name: _described(channel) for name, channel in _all_channels(job).items()},
    }
    if host.checkpoints is not None:
        files["checkpointconfig"] = {"LocalPath": str(host.checkpoint_path)}
    return files


def _described(channel: Channel) -> dict[str, str]:
    content = {"ContentType": channel.content_type} if channel.content_type else {}
    spread = "ShardedByS3Key" if channel.sharded else "FullyReplicated"
    return content | {
        "TrainingInputMode": channel.mode,
        "S3DistributionType": spread,
        "RecordWrapperType": "None",
    }


def _all_channels(job: Job) -> dict[str, Channel]:
    """With SDK v3 the code is one."""
    code = {"code": Channel(path=job.source)} if job.client == "sdk-v3" and job.source is not None else {}
    return {**job.data, **code}


def lay_out(job: Job, host: HostPlan, told: channels.Told = lambda done, total: None) -> list[Pipe]:
    """Write the host's folder, which must not be there. The pipes it gives are to be started and closed.

    Raises ConfigError and EngineError.
    """
    for name in _CONTENT:
        (host.ml / name).mkdir(parents=True)
    if host.checkpoints is not None:
        host.checkpoints.mkdir(parents=True, exist_ok=True)
    for name, content in config_files(job, host).items():
        (host.ml / "input/config" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    if job.source is not None:
        code = "input/data/code" if job.client == "sdk-v3" else "code"
        shutil.copytree(job.source, host.ml / code, dirs_exist_ok=True)
    pipes = []
    for name, channel in job.data.items():
        files = channels.keys(channel, host.index, job.hosts)
        folder = host.ml / "input/data" / name
        if channel.mode == "File":
            channels.copy(files, folder, told)
        elif channel.mode == "Pipe":
            pipes.append(Pipe(files, folder.parent, name))
        elif job.engine == "docker":
            folder.mkdir()
            mounted = _fast(host.ml.parent, name, channel)
            if mounted.is_relative_to(host.ml.parent):
                channels.link(files, mounted)
        elif _fast(host.ml.parent, name, channel) == channel.path.resolve():
            folder.symlink_to(channel.path.resolve(), target_is_directory=True)
        else:
            channels.link(files, folder)
    return pipes
