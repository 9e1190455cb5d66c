"""A job that has failed, told to MLflow: the rank that recorded it may be the one that is gone."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping

from moorage.contract.config import JobConfig
from moorage.errors import StopTimeout

RECORDER = "moorage.training.tracking"
"""A process of its own: MLflow's client takes a second to import, and PID 1 stays as small as it is."""

SECONDS = 30.0

logger = logging.getLogger("moorage")


def record_failure(config: JobConfig, env: Mapping[str, str], *, code: int, why: str) -> None:
    """End the job's run as failed, on the first host. Cannot fail: it logs why it was not done.

    why: without secrets. Not where a stop took too long: no time is left, and the job may go on one day.
    """
    if config.host_rank > 0 or code == StopTimeout.exit_code or not env.get("MLFLOW_TRACKING_URI"):
        return
    try:
        done = subprocess.run(
            [sys.executable, "-m", RECORDER], env=env, input=why, capture_output=True, text=True, timeout=SECONDS,
            errors="replace", check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("MLflow was not told that the job failed: %s", error)
        return
    for line in done.stderr.splitlines() if not done.returncode else done.stderr.splitlines()[-1:]:
        logger.warning("%s", line)
