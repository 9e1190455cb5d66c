"""What a client makes of hyperparameters and of the program on their way to the container.

| client | True / "adam" / [1, 2] / None | the program |
|---|---|---|
| sdk-v2 | `true` / `"adam"` / `[1, 2]` / `null` | /opt/ml/code, named by sagemaker_program |
| sdk-v3 | `true` / `adam` / `[1, 2]` / `null` | the channel `code`, named by the command `train PROGRAM` |
| tuning | raw strings, and `_tuning_objective_metric` | as sdk-v2, unquoted |
| plain | as they were typed | as sdk-v2, unquoted |

As seen with both SDKs (docs/clients.md); plain is CreateTrainingJob itself, or an Estimator of SDK v2 with the program
in the image.
"""

from __future__ import annotations

import json
from typing import Any

from moorage.contract.secrets import redact
from moorage.contract.values import decode
from moorage.errors import ConfigError
from moorage.rehearsal.job import Client, Job

REGION = "eu-central-1"
MOST = 100
"""Hyperparameters of a job, and entries of its Environment (CreateTrainingJob)."""


def encode(client: Client, typed: str) -> str:
    """One hyperparameter, as it stands in hyperparameters.json."""
    if client in ("tuning", "plain"):
        return typed
    value: Any = decode(typed)
    if client == "sdk-v3" and isinstance(value, str):
        return value
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):  # a Python literal that JSON has no word for, such as a set
        return json.dumps(typed) if client == "sdk-v2" else typed


def hyperparameters(job: Job, code: str) -> dict[str, str]:
    """All of hyperparameters.json. code: where the container finds the program. Raises ConfigError."""
    found = {name: encode(job.client, typed) for name, typed in job.hyperparameters.items()}
    if job.client == "tuning":
        found["_tuning_objective_metric"] = next(iter(job.metrics), "loss")
    if job.program is not None and job.client != "sdk-v3":
        script = {"sagemaker_program": job.program, "sagemaker_submit_directory": code}
        if job.client == "sdk-v2":
            script |= {
                "sagemaker_container_log_level": "20", "sagemaker_job_name": job.name, "sagemaker_region": REGION,
            }  # fmt: skip
        found = {name: encode(job.client, value) for name, value in script.items()} | found
    _limits("hyperparameter", found, longest=2500)
    return found


def command(job: Job) -> tuple[str, ...]:
    """What comes behind the image's name in `docker run`."""
    if job.program is not None and (job.client == "sdk-v3" or job.arguments):
        return ("train", job.program, *job.arguments)
    return ("train", *job.arguments)


def environment(job: Job, attempt: int = 1) -> dict[str, str]:
    """Of the container: the job's, and what the platform adds. attempt: from 1. Raises ConfigError."""
    _limits("environment variable", job.env, longest=512)
    platform = {
        "TRAINING_JOB_NAME": job.name,
        "TRAINING_JOB_ARN": f"arn:aws:sagemaker:{REGION}:000000000000:training-job/{job.name}",
        "AWS_REGION": REGION,
    }
    number = job.ranks_per_host
    if job.ranks_by_attempt:
        number = job.ranks_by_attempt[min(attempt, len(job.ranks_by_attempt)) - 1]
    ranks = {} if number is None else {"MOORAGE_RANKS_PER_HOST": str(number)}
    return {**platform, **ranks, **job.env}


def _limits(what: str, given: Any, longest: int) -> None:
    if len(given) > MOST:
        raise ConfigError(
            f"the job has {len(given)} {what}s, more than {MOST}", why="CreateTrainingJob refuses it", fix="join some"
        )
    for name, value in given.items():
        if len(value) > longest:
            raise ConfigError(
                f"the value of the {what} {redact(name)!r} has {len(value)} characters, more than {longest}",
                why="CreateTrainingJob refuses it",
                fix="put it into a file of a channel",
            )
