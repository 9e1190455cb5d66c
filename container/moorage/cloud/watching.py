"""Jobs of SageMaker as they are: described, listed, stopped, and their logs followed. Politely: ever slower while
nothing happens, slower still where AWS asks for it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from moorage.cloud.aws import Passing, aws_errors, client, error_code, is_missing
from moorage.cloud.described import Checkpoint, Described, committed_step
from moorage.contract.s3 import split
from moorage.errors import CloudError

PATIENCE = 600.0
"""Seconds without an answer of AWS until watching gives up."""

log = logging.getLogger("moorage")


class Pace:
    """How long to wait between two questions. first, most: seconds."""

    def __init__(
        self, first: float, most: float, *, sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._first, self._most, self._sleep, self._clock = first, most, sleep, clock
        self._now, self._answered = first, clock()

    def moved(self) -> None:
        """Something happened: more may."""
        self._now, self._answered = self._first, self._clock()

    def idle(self) -> None:
        """An answer, and nothing new in it."""
        self._now, self._answered = min(1.5 * self._now, self._most), self._clock()

    def refused(self, error: CloudError) -> None:
        """AWS is not reached, or takes no more. Raises the error once that lasts."""
        if self._clock() - self._answered > PATIENCE:
            raise error
        self._now = min(2 * self._now, 4 * self._most)
        log.warning("%s; asking again in %.0f s", error.why or error.what, self._now)

    def wait(self) -> None:
        # Many who watch would ask at the same moment otherwise.
        self._sleep(self._now * random.uniform(0.8, 1.2))


class Jobs:
    """env: as for every command of the cloud. region: None is that of the environment. Methods raise CloudError."""

    def __init__(self, env: Mapping[str, str], region: str | None = None) -> None:
        self._env, self._region = env, region
        self._sagemaker = client("sagemaker", env, region)

    def describe(self, name: str) -> Described:
        """As it is now, without a look at its checkpoints."""
        with aws_errors(f"cannot look at the job {name}", allow="sagemaker:DescribeTrainingJob"):
            try:
                answer = self._sagemaker.describe_training_job(TrainingJobName=name)
            except self._sagemaker.exceptions.ClientError as error:
                raise _missing(name, error, self._sagemaker.meta.region_name) from None
        return Described(answer=answer, now=datetime.now(UTC))

    def with_checkpoint(self, job: Described) -> Described:
        """The same, with its newest checkpoint in S3, where there is one and whoever asks may look."""
        if not job.checkpoints:
            return job
        try:
            found = newest_checkpoint(job.checkpoints, client("s3", self._env, self._region))
        except CloudError as error:
            log.warning("%s", error)
            return job
        return Described(answer=job.answer, now=job.now, checkpoint=found)

    def watch(self, name: str, pace: Pace) -> Iterator[Described]:
        """The job, whenever something of it has changed, until it is over."""
        before: Any = None
        while True:
            try:
                job = self.describe(name)
            except Passing as error:
                pace.refused(error)
            else:
                now = (job.status, job.secondary, len(job.phases), job.answer.get("WarmPoolStatus"))
                if now != before:
                    before = now
                    yield job
                    pace.moved()
                else:
                    pace.idle()
                if job.is_over:
                    return
            pace.wait()

    def stop(self, name: str) -> None:
        """Ask for it: the platform sends SIGTERM, and kills 120 s later."""
        with aws_errors(f"cannot stop the job {name}", allow="sagemaker:StopTrainingJob"):
            try:
                self._sagemaker.stop_training_job(TrainingJobName=name)
            except self._sagemaker.exceptions.ClientError as error:
                raise _missing(name, error, self._sagemaker.meta.region_name) from None

    def list(self, *, containing: str = "", status: str = "", most: int) -> list[Mapping[str, Any]]:
        """Summaries, the newest first."""
        wanted = {"NameContains": containing, "StatusEquals": status}
        pages = self._sagemaker.get_paginator("list_training_jobs").paginate(
            SortBy="CreationTime", SortOrder="Descending", PaginationConfig={"MaxItems": most, "PageSize": 100},
            **{key: value for key, value in wanted.items() if value},
        )  # fmt: skip
        with aws_errors("cannot list the jobs", allow="sagemaker:ListTrainingJobs"):
            return [one for page in pages for one in page["TrainingJobSummaries"]]


def _missing(name: str, error: Any, region: str) -> Exception:
    if not is_missing(error):
        return error  # type: ignore[no-any-return]
    return CloudError(
        f"there is no training job {name} in {region}", why=str(error.response["Error"]["Message"]),
        fix="`moorage list` shows those there are; --region, or AWS_REGION, names another region",
    )  # fmt: skip


def newest_checkpoint(uri: str, s3: Any) -> Checkpoint | None:
    """The newest committed one under a prefix. Raises CloudError."""
    bucket, prefix = split(uri.rstrip("/"))
    prefix = f"{prefix}/" if prefix else ""
    with aws_errors(f"cannot look at the checkpoints in {uri}", allow="s3:ListBucket, s3:GetObject"):
        folders = [
            one["Prefix"]
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
            for one in page.get("CommonPrefixes", ())
        ]
        by_step = {step: folder for folder in folders if (step := committed_step(folder)) is not None}
        for step in sorted(by_step, reverse=True):
            try:
                found = s3.head_object(Bucket=bucket, Key=f"{by_step[step]}manifest.json")
            except s3.exceptions.ClientError as error:
                if error_code(error) not in ("404", "NoSuchKey", "NotFound"):
                    raise
            else:
                return Checkpoint(step=step, saved=found["LastModified"])
    return None
