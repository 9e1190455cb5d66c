"""The job's configuration files, read once into one frozen object."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moorage.contract.paths import Paths
from moorage.contract.secrets import redacted
from moorage.contract.settings import Settings, is_setting
from moorage.errors import ConfigError

CHANNEL_NAME = re.compile(r"[A-Za-z0-9.\-_]{1,64}")
TUNING = "_tuning_objective_metric"
"""The hyperparameter by which a trial of a tuning job is known; its value is the metric that is tuned."""
_EXAMPLE = '{"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}'


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One input channel. `folder` may be absent: a host can be given no object of a sharded channel."""

    name: str
    folder: Path
    input_mode: str = "File"
    content_type: str = ""
    distribution: str = ""


@dataclass(frozen=True, kw_only=True)
class InstanceGroup:
    name: str
    instance_type: str
    hosts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What the platform told this container.

    hosts: sorted, the same order on every host.
    hyperparameters: the program's own, still as text, without `sagemaker_*`, `moorage_*` and `_*`.
    sagemaker: the `sagemaker_*` ones (script mode). raw: everything as it stood in the files, for SM_*.
    checkpoint_folder: of this job alone. The trials of a tuning job have one CheckpointConfig, and it is not said
    whether they share its prefix: each keeps to a folder below it, of its own name.
    """

    paths: Paths
    settings: Settings
    name: str
    arn: str
    current_host: str
    hosts: tuple[str, ...]
    instance_type: str
    current_group: str
    instance_groups: tuple[InstanceGroup, ...]
    network_interface: str
    channels: tuple[Channel, ...]
    hyperparameters: Mapping[str, str] = field(repr=False)
    sagemaker: Mapping[str, str] = field(repr=False)
    checkpoint_folder: Path
    has_checkpoint_config: bool
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def host_rank(self) -> int:
        return self.hosts.index(self.current_host)

    def channel(self, name: str) -> Channel:
        """Raises ConfigError when the job has no such channel."""
        for channel in self.channels:
            if channel.name == name:
                return channel
        there = ", ".join(c.name for c in self.channels) or "none"
        raise ConfigError(
            f"the job has no channel {name!r}",
            why=f"its channels are: {there}",
            fix="name it in InputDataConfig (inputdataconfig.json)",
        )

    @property
    def is_trial(self) -> bool:
        """Whether the job is one of a tuning job, which may stop it before its end for good."""
        return TUNING in self.raw["hyperparameters"]

    @property
    def upload_agent(self) -> bool | None:
        """Whether the platform uploads the checkpoint folder; None when only its marks can tell."""
        return {"on": True, "off": False, "auto": True if self.has_checkpoint_config else None}[
            self.settings.upload_agent
        ]

    def given(self) -> dict[str, str]:
        """What makes this job another than the last, as it may be shown: the ledger keeps it for `moorage compare`.

        Hyperparameters, settings that are not the default (as moorage_<name>), hosts and instance type.
        """
        default = Settings()
        settings = {item.name: getattr(self.settings, item.name) for item in fields(Settings)}
        return {
            **{name: redacted(name, text) for name, text in self.hyperparameters.items()},
            **{
                f"moorage_{name}": redacted(name, str(value))
                for name, value in settings.items()
                if value != getattr(default, name) and name != "control_port"
            },
            "hosts": str(len(self.hosts)),
            "instance_type": self.instance_type,
        }

    @property
    def warm_start_folder(self) -> Path | None:
        """What the setting warm_start names. Raises ConfigError for what is neither an absolute path nor a channel."""
        text = self.settings.warm_start
        if not text or Path(text).is_absolute():
            return Path(text) if text else None
        name, _, rest = text.partition("/")
        if name not in {channel.name for channel in self.channels}:
            raise ConfigError(
                f"warm_start {text!r} is neither an absolute path nor in a channel",
                why=f"the job's channels are: {', '.join(channel.name for channel in self.channels) or 'none'}",
                fix="give a path such as /opt/ml/input/data/CHANNEL, or the name of a channel of InputDataConfig",
            )
        return self.channel(name).folder / rest

    @classmethod
    def read(
        cls, env: Mapping[str, str], *, defaults: Mapping[str, Any] | None = None, paths: Paths | None = None
    ) -> JobConfig:
        """Read every file under input/config.

        resourceconfig.json must be there; the others may be absent, which is an empty map. Raises ConfigError.
        """
        paths = paths or Paths.from_env(env)
        resource = read_json(paths.config / "resourceconfig.json")
        if resource is None:
            raise ConfigError(
                f"{paths.config / 'resourceconfig.json'} is missing",
                why="the platform writes it; a local run has to",
                fix=f"write {_EXAMPLE} to it, or point SAGEMAKER_BASE_DIR at the job's folder",
            )
        return cls._from_files(env, paths, resource, defaults)

    @classmethod
    def local(cls, env: Mapping[str, str], *, defaults: Mapping[str, Any] | None = None, paths: Paths) -> JobConfig:
        """A program run by `python program.py`: one host, whatever of the folder is there."""
        host = {"current_host": "localhost", "hosts": ["localhost"], "network_interface_name": "lo"}
        resource = read_json(paths.config / "resourceconfig.json") or host
        return cls._from_files(env, paths, resource, defaults)

    @classmethod
    def _from_files(
        cls, env: Mapping[str, str], paths: Paths, resource: Mapping[str, Any], defaults: Mapping[str, Any] | None
    ) -> JobConfig:
        given = read_json(paths.config / "hyperparameters.json") or {}
        inputs = read_json(paths.config / "inputdataconfig.json") or {}
        checkpoint = read_json(paths.config / "checkpointconfig.json") or {}
        texts = {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
        hosts, current = _hosts(resource, paths)
        name = env.get("TRAINING_JOB_NAME") or texts.get("sagemaker_job_name", "").strip('"') or "local"
        checkpoints = _checkpoint_folder(checkpoint, paths)
        return cls(
            paths=paths,
            settings=Settings.read(env, texts, defaults),
            name=name,
            arn=env.get("TRAINING_JOB_ARN", ""),
            current_host=current,
            hosts=hosts,
            instance_type=str(resource.get("current_instance_type") or "local"),
            current_group=str(resource.get("current_group_name") or ""),
            instance_groups=_groups(resource, paths),
            network_interface=str(resource.get("network_interface_name") or ""),
            channels=_channels(inputs, paths),
            hyperparameters=MappingProxyType(
                {k: v for k, v in texts.items() if not (is_setting(k) or k.startswith(("sagemaker_", "_")))}
            ),
            sagemaker=MappingProxyType({k: v for k, v in texts.items() if k.startswith("sagemaker_")}),
            checkpoint_folder=checkpoints / name if TUNING in texts else checkpoints,
            has_checkpoint_config=bool(checkpoint.get("LocalPath")),
            raw=MappingProxyType({"resourceconfig": resource, "inputdataconfig": inputs, "hyperparameters": texts}),
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None when there is no such file. Raises ConfigError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        # The text itself is not shown: it may hold a secret.
        raise ConfigError(
            f"{path} is not valid JSON",
            why=_json_place(error),
            fix="correct the file; the platform writes one JSON object",
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}", why=str(error.strerror), fix="check what lies there") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}", fix="it must hold one JSON object")
    return value


def _json_place(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno} column {error.colno}"
    return type(error).__name__


def _hosts(resource: Mapping[str, Any], paths: Paths) -> tuple[tuple[str, ...], str]:
    path = paths.config / "resourceconfig.json"
    hosts, current = resource.get("hosts"), resource.get("current_host")
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) and host for host in hosts):
        raise ConfigError(
            f"{path}: 'hosts' must be a list of host names", why=f"got {hosts!r}", fix=f"as in {_EXAMPLE}"
        )
    if len(set(hosts)) != len(hosts):
        raise ConfigError(
            f"{path}: 'hosts' names a host twice", why=f"got {hosts!r}", fix="every host needs a name of its own"
        )
    if current not in hosts:
        raise ConfigError(
            f"{path}: current_host {current!r} is not among hosts {sorted(hosts)}",
            why="the platform sets both",
            fix="name the host as it stands in 'hosts'",
        )
    return tuple(sorted(hosts)), str(current)


def _groups(resource: Mapping[str, Any], paths: Paths) -> tuple[InstanceGroup, ...]:
    try:
        return tuple(
            InstanceGroup(
                name=str(group["instance_group_name"]),
                instance_type=str(group["instance_type"]),
                hosts=tuple(sorted(_names(group["hosts"]))),
            )
            for group in resource.get("instance_groups") or ()
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{paths.config / 'resourceconfig.json'}: 'instance_groups' is not as the platform writes it",
            why=f"{type(error).__name__}: {error}",
            fix='as in [{"instance_group_name": "g", "instance_type": "ml.m5.large", "hosts": ["algo-1"]}]',
        ) from None


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"hosts is {value!r}")
    return value


def _channels(inputs: Mapping[str, Any], paths: Paths) -> tuple[Channel, ...]:
    # From the file, never by listing the folder: siblings such as <channel>-manifest appear beside the channels.
    path = paths.config / "inputdataconfig.json"
    channels = []
    for name, given in sorted(inputs.items()):
        if not CHANNEL_NAME.fullmatch(name) or name in (".", ".."):
            raise ConfigError(
                f"{path}: {name!r} is not a channel name", fix="use letters, digits, '.', '-' and '_', at most 64"
            )
        spec = given or {}
        if not isinstance(spec, dict):
            raise ConfigError(
                f"{path}: channel {name!r} holds a {type(spec).__name__}", fix="it must hold an object, {} at least"
            )
        channels.append(
            Channel(
                name=name,
                folder=paths.data / name,
                input_mode=str(spec.get("TrainingInputMode") or "File"),
                content_type=str(spec.get("ContentType") or ""),
                distribution=str(spec.get("S3DistributionType") or ""),
            )
        )
    return tuple(channels)


def _checkpoint_folder(checkpoint: Mapping[str, Any], paths: Paths) -> Path:
    # The job's CheckpointConfig is the truth; without one nothing is uploaded, and the usual place serves restarts.
    local = checkpoint.get("LocalPath")
    if local is None:
        return paths.checkpoints
    if not isinstance(local, str) or not local.startswith("/"):
        raise ConfigError(
            f"{paths.config / 'checkpointconfig.json'}: LocalPath {local!r} is not an absolute path",
            fix="give CheckpointConfig.LocalPath such as /opt/ml/checkpoints",
        )
    return Path(local)
