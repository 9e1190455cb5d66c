"""What AWS has of a job, brought into a folder as a rehearsal leaves one, for `moorage report` and `compare`: how it
ended, the ledger beside its checkpoints, and the metric lines of its log.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from moorage.cloud.aws import aws_errors, client
from moorage.cloud.described import Described
from moorage.cloud.instances import fetch_prices
from moorage.cloud.logs import JOBS
from moorage.cloud.watching import Jobs
from moorage.contract.ledger import FOLDER
from moorage.contract.s3 import split
from moorage.contract.secrets import redacted
from moorage.contract.values import unquoted
from moorage.errors import CloudError
from moorage.rehearsal.report_folder import OUTCOME

LOG = "cloudwatch.log"

_CLOCKS = timedelta(seconds=60)
"""That those of a host and of SageMaker may be apart."""
_NAME = re.compile(r"(\d{8}T\d{6}Z)-[A-Za-z0-9.\-_]+\.jsonl")
"""Of a ledger's file: when its attempt began, and where."""

log = logging.getLogger("moorage")


class Fetching:
    """env, region: as for every command of the cloud. priced: ask AWS's price list, too. Methods raise CloudError."""

    def __init__(self, env: Mapping[str, str], region: str | None = None, *, priced: bool = False) -> None:
        self._env, self._region, self._priced = env, region, priced
        self._jobs = Jobs(env, region)

    def fetch(self, name: str, folder: Path) -> None:
        """Fill `folder`. What whoever asks may not see is left out, with a line in the log."""
        job = self._jobs.describe(name)
        outcome = {**outcome_of(job), "bill": self._bill(job)}
        (folder / OUTCOME).write_text(json.dumps(outcome), encoding="utf-8")
        for part in (self._ledger, self._metrics):
            try:
                part(job, folder)
            except CloudError as error:
                log.warning("%s: %s", name, error)

    def _ledger(self, job: Described, folder: Path) -> None:
        """Of its own attempts: a location that jobs share has those of all of them."""
        if not job.checkpoints:
            return
        bucket, key = split(job.checkpoints.rstrip("/"))
        prefix = f"{key}/{FOLDER}/" if key else f"{FOLDER}/"
        s3, into = client("s3", self._env, self._region), folder / FOLDER
        with aws_errors(f"cannot read the ledger in {job.checkpoints}", allow="s3:ListBucket, s3:GetObject"):
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
            keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
            into.mkdir()
            for key in keys:
                name = key.removeprefix(prefix)
                if _is_of(job, name):
                    (into / name).write_bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())

    def _metrics(self, job: Described, folder: Path) -> None:
        """The lines that begin with #metric: CloudWatch finds them, and the rest stays there."""
        logs, prefix = client("logs", self._env, self._region), f"{job.name}/"
        found = []
        with aws_errors(f"cannot read the log {JOBS}", allow="logs:FilterLogEvents"):
            try:
                for page in logs.get_paginator("filter_log_events").paginate(
                    logGroupName=JOBS, logStreamNamePrefix=prefix, filterPattern='"#metric"'
                ):
                    found += [one for one in page["events"] if one["logStreamName"].startswith(prefix)]
            except logs.exceptions.ResourceNotFoundException:
                pass  # until the first job has said something
        lines = [
            f"{datetime.fromtimestamp(one['timestamp'] / 1000, UTC).isoformat()} {line}\n"
            for one in sorted(found, key=lambda one: one["timestamp"])
            for line in str(one["message"]).splitlines()
        ]
        (folder / LOG).write_text("".join(lines), encoding="utf-8")

    def _bill(self, job: Described) -> dict[str, float | None] | None:
        """BillableTimeInSeconds, by AWS's formula that of each instance; on Spot the discount is in the time."""
        if job.billable_seconds is None:
            return None
        hourly = self._hourly(job) if self._priced else None
        return {"seconds": job.billable_seconds, "instances": job.hosts, "per_hour": hourly}

    def _hourly(self, job: Described) -> float | None:
        """Of all its instances, on demand; None where the price list does not have one of them."""
        groups = job.groups
        arn = str(job.answer["TrainingJobArn"])
        try:
            prices = fetch_prices({str(group["InstanceType"]) for group in groups}, arn.split(":")[3], self._env)
        except CloudError as error:
            log.warning("%s: %s", job.name, error)
            return None
        if not all(group["InstanceType"] in prices for group in groups):
            return None
        return sum(int(group["InstanceCount"]) * prices[group["InstanceType"]].on_demand for group in groups)


def outcome_of(job: Described) -> dict[str, Any]:
    """As a rehearsal's outcome.json, and what only the platform knows: arn; given and hyperparameters, by name."""
    return {
        "name": job.name,
        "arn": job.answer.get("TrainingJobArn", ""),
        "status": job.status,
        "secondary": job.secondary,
        "failure_reason": job.answer.get("FailureReason", ""),
        "transitions": [
            {
                "status": phase.status, "message": phase.message, "start": phase.started.timestamp(),
                "end": phase.ended and phase.ended.timestamp(),
            }
            for phase in job.phases
        ],
        "training_seconds": job.training_seconds,
        "billable_seconds": job.billable_seconds,
        "given": dict(_given(job)),
        "hyperparameters": {
            name: redacted(name, unquoted(text))
            for name, text in job.answer.get("HyperParameters", {}).items()
            if not name.startswith("sagemaker_")
        },
    }  # fmt: skip


def _given(job: Described) -> Iterator[tuple[str, str]]:
    groups = job.groups
    yield "hosts", str(job.hosts)
    yield "instance_type", ", ".join(sorted({str(group.get("InstanceType", "")) for group in groups}))
    yield "spot", "yes" if job.is_spot else "no"
    yield "image", str(job.answer.get("AlgorithmSpecification", {}).get("TrainingImage", ""))
    for channel in job.answer.get("InputDataConfig", ()):
        source = channel.get("DataSource", {})
        where = source.get("S3DataSource", {}).get("S3Uri") or source.get("FileSystemDataSource", {}).get(
            "FileSystemId"
        )
        # Each job's code has an address of its own, made of its hash: it stands for what changed in the program.
        yield f"data.{channel['ChannelName']}", str(where or "")


def _is_of(job: Described, name: str) -> bool:
    """Whether a file of that name may be of this job's ledger: its attempt began while the job was there."""
    found = _NAME.fullmatch(name)
    if found is None:
        return False
    began = datetime.strptime(found[1], "%Y%m%dT%H%M%S%z")
    created, ended = job.answer["CreationTime"], job.answer.get("TrainingEndTime") or job.now
    return bool(created - _CLOCKS <= began <= ended + _CLOCKS)
