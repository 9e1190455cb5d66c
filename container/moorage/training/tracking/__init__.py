"""The run of a job in MLflow: one across interruptions, whole when the server was away, and never in training's way."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from moorage.contract.config import JobConfig
from moorage.training.tracking import lineage
from moorage.training.tracking.recorder import Recorder as Recorder
from moorage.training.tracking.server import FAILURE, Target
from moorage.training.tracking.spool import Spool

SMALL = 2**20
"""Bytes of a file that is recorded, at most."""

FAILED_SECONDS = 10.0
"""For telling that the job has failed, which keeps its container from ending."""

log = logging.getLogger("moorage")


def record(
    config: JobConfig, env: Mapping[str, str], *, world_size: int, params: Callable[[], Mapping[str, str]]
) -> Recorder | None:
    """Record the job where MLFLOW_TRACKING_URI says; None where it says nothing, or a package is missing.

    A job on the platform is known by its ARN; where it has none, by what lies in its checkpoint folder. params: asked
    for when recording begins, with the first metric.
    """
    if (target := _target(env)) is None:
        return None
    spool = Spool(config.checkpoint_folder, config.arn)
    return Recorder(
        target,
        spool,
        name=config.name,
        params=params,
        tags=lambda: lineage.tags(config, env, world_size=world_size),
        files=lambda: artifacts(config.paths.model),
    )


def record_failure(config: JobConfig, env: Mapping[str, str], why: str) -> None:
    """End the run of a job whose ranks are gone, once what they left unsent is sent. Nothing where they began none.

    why: becomes the tag moorage.failure. Without secrets.
    """
    if not Spool.is_begun(config.checkpoint_folder, config.arn) or (target := _target(env)) is None:
        return
    spool = Spool(config.checkpoint_folder, config.arn)
    tags = {**spool.tags, FAILURE: why.strip()}
    recorder = Recorder(target, spool, name=config.name, params=lambda: spool.params, tags=lambda: tags)
    recorder.finish("FAILED", FAILED_SECONDS)


def _target(env: Mapping[str, str]) -> Target | None:
    target = Target.of(env)
    if target is None:
        return None
    if missing := [name for name, module in target.needs.items() if importlib.util.find_spec(module) is None]:
        log.warning(
            "nothing is recorded in MLflow, though MLFLOW_TRACKING_URI is set: %s is not installed; add it to the "
            "program's requirements.txt, or to the image",
            " and ".join(missing),
        )
        return None
    return target


def artifacts(folder: Path) -> list[Path]:
    """The small files of the model folder: what is known of the model. Its weights are in the job's output in S3."""
    return [path for path in sorted(folder.glob("*")) if path.is_file() and path.stat().st_size <= SMALL]
