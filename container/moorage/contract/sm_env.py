"""The SM_* environment of a program, as the official toolkit gives it, built once behind this adapter.

`sagemaker_training.environment` reads SAGEMAKER_BASE_DIR when it is imported, creates the code folder, sets variables
in os.environ, and logs the hyperparameters that it reads. None of that is seen outside: it is imported over a folder of
its own, its constants are then moved to the job's, it is given what it would read, and os.environ and sys.modules are
put back.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from moorage.contract.config import JobConfig
from moorage.contract.hyperparameters import plain
from moorage.contract.program import Program
from moorage.contract.secrets import HIDDEN, is_secret_key, known_secrets, redact_value
from moorage.errors import ConfigError

log = logging.getLogger("moorage")

MAX_STRING = 128 * 1024
"""Bytes of NAME=value and its NUL above which Linux starts no process (MAX_ARG_STRLEN)."""

_BASE = "SAGEMAKER_BASE_DIR"
_PACKAGE = "sagemaker_training"
_MODULE = f"{_PACKAGE}.environment"
_OVERRULED = ("SAGEMAKER_PROGRAM", "SAGEMAKER_SUBMIT_DIRECTORY", "SAGEMAKER_CONTAINER_LOG_LEVEL")
"""Read by the toolkit in the environment; the hyperparameters we give it say the same, and are never ill-formed."""

_SET_BY_TOOLKIT = ("SAGEMAKER_JOB_NAME", "SAGEMAKER_REGION", "CURRENT_HOST")


class _Given(dict[str, Any]):
    """Arguments that are used even when they are empty: the toolkit would read the files again."""

    def __bool__(self) -> bool:
        return True


def environment(config: JobConfig, program: Program | None, env: Mapping[str, str]) -> dict[str, str]:
    """SM_* for the ranks of `program`, and the three variables that the official toolkit sets beside them.

    env: the host's environment. SM_MASTER_ADDR and SM_MASTER_PORT are not among them: the port is chosen per attempt.
    Not for two threads at once, since it borrows os.environ. Raises ConfigError when the toolkit is missing or cannot
    read the job's configuration.
    """
    host = {key: value for key, value in env.items() if key not in _OVERRULED}
    host[_BASE] = str(config.paths.base)
    resource = _sorted_hosts(config.raw["resourceconfig"])
    inputs = {name: spec or {} for name, spec in config.raw["inputdataconfig"].items()}
    with _borrowed_environ(host) as environ, _toolkit(config.paths.base, env) as module:
        try:
            built = module.Environment(_Given(resource), _Given(inputs), _Given(_hyperparameters(config, program)))
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise ConfigError(
                "sagemaker_training cannot make SM_* of the job's configuration",
                why=f"{type(error).__name__}: {error}",
                fix=f"check the files in {config.paths.config}",
            ) from None
        values = {**built.to_env_vars(), **{name: environ[name] for name in _SET_BY_TOOLKIT}}
    return _carried({**values, **_newer_names(config, program, values)})


def for_log(env: Mapping[str, str]) -> dict[str, str]:
    """`env` as it may be logged: no secret, not inside JSON values either, and none repeated under another name."""
    known = known_secrets(env)
    return {key: HIDDEN if is_secret_key(key) else str(redact_value(value, known)) for key, value in env.items()}


def _sorted_hosts(resource: Mapping[str, Any]) -> dict[str, Any]:
    groups = [dict(group, hosts=sorted(group["hosts"])) for group in resource.get("instance_groups") or ()]
    return {**resource, "hosts": sorted(resource["hosts"]), "instance_groups": groups}


def _hyperparameters(config: JobConfig, program: Program | None) -> dict[str, Any]:
    """The program's own and the platform's, decoded as the official toolkit does; ours are not for programs."""
    given = {key: plain(text) for key, text in {**config.hyperparameters, **config.sagemaker}.items()}
    for key in ("sagemaker_job_name", "sagemaker_region", "sagemaker_submit_directory"):
        if key in given:
            given[key] = str(given[key])
    given.setdefault("sagemaker_job_name", config.name)
    if program:
        given["sagemaker_program"] = program.entry
        # Where the code is, unless the job says where it was: a script may look for either.
        given.setdefault("sagemaker_submit_directory", str(program.code))
    return given


def _newer_names(config: JobConfig, program: Program | None, values: Mapping[str, str]) -> dict[str, str]:
    """What SDK v3 adds, and the checkpoint folder."""
    names = {
        "SM_INPUT_DATA_DIR": str(config.paths.data),
        "SM_CHECKPOINT_DIR": str(config.checkpoint_folder),
        "SM_HOST_COUNT": str(len(config.hosts)),
        "SM_CURRENT_HOST_RANK": str(config.host_rank),
    }
    if program:
        names |= {"SM_SOURCE_DIR": str(program.code), "SM_ENTRY_SCRIPT": program.entry}
    # Version 2 says SM_HP_BATCH-SIZE, which no shell can read; version 3 says SM_HP_BATCH_SIZE.
    for key, value in values.items():
        if key.startswith("SM_HP_"):
            names.setdefault(key.replace("-", "_"), values.get(key.replace("-", "_"), value))
    return names


def _carried(values: Mapping[str, str]) -> dict[str, str]:
    """Those that a process can be started with."""
    kept = {}
    for key, value in values.items():
        if len(os.fsencode(f"{key}={value}")) >= MAX_STRING:
            log.warning("%s is not set: its %d characters are more than Linux lets one variable hold", key, len(value))
        else:
            kept[key] = value
    return kept


@contextlib.contextmanager
def _borrowed_environ(env: Mapping[str, str]) -> Iterator[os._Environ[str]]:
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(env)
        yield os.environ
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _toolkit(base: Path, env: Mapping[str, str]) -> Iterator[ModuleType]:
    """The toolkit's module with the job's folders, while os.environ is borrowed."""
    before = {name: sys.modules.pop(name, None) for name in (_MODULE, "boto3")}
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
    # boto3 takes twice as long to import as all the rest, and serves to look up the region.
    stand_in = SimpleNamespace(session=SimpleNamespace(Session=lambda: SimpleNamespace(region_name=region)))
    sys.modules["boto3"] = cast(ModuleType, stand_in)
    try:
        with tempfile.TemporaryDirectory(prefix="moorage-toolkit-") as scratch:
            module = _imported(scratch)
        for name, value in vars(module).items():
            if isinstance(value, str) and value.startswith(scratch):
                setattr(module, name, f"{base}{value[len(scratch) :]}")
        yield module
    finally:
        for name, old in before.items():
            sys.modules.pop(name, None)
            if old:
                sys.modules[name] = old
        # The next import of it, by anybody, makes a new one.
        if package := sys.modules.get(_PACKAGE):
            vars(package).pop("environment", None)


def _imported(base: str) -> ModuleType:
    job = os.environ[_BASE]
    os.environ[_BASE] = base
    try:
        return importlib.import_module(_MODULE)
    except ImportError as error:
        raise ConfigError(
            "sagemaker_training cannot be imported, so there is no SM_* environment",
            why=str(error),
            fix="install moorage with its dependencies: sagemaker-training is one",
        ) from None
    finally:
        os.environ[_BASE] = job
