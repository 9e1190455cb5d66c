"""CloudWatch's logs of a job or of an endpoint: all hosts' lines in the order of their times, once each."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moorage.cloud.aws import aws_errors, client

JOBS = "/aws/sagemaker/TrainingJobs"
ENDPOINTS = "/aws/sagemaker/Endpoints"


@dataclass(frozen=True, kw_only=True)
class Line:
    """moment: seconds since 1970. host: `algo-1`, or the stream where it names none."""

    moment: float
    host: str
    text: str


class Logs:
    """Of the streams of `group` whose names begin with `prefix`.

    since: seconds since 1970. tail: of each stream, so many lines of what is there at first. Methods raise CloudError.
    """

    def __init__(
        self, env: Mapping[str, str], region: str | None, *, group: str, prefix: str = "", since: float | None = None,
        tail: int | None = None,
    ) -> None:  # fmt: skip
        self._logs = client("logs", env, region)
        self._group, self._prefix, self._since, self._tail = group, prefix, since, tail
        self._tokens: dict[str, str | None] = {}
        """By stream: where to go on; None where nothing of it was read yet."""

    def new(self) -> Iterator[Line]:
        """What has come since the last call, in new streams too: a job that Spot interrupted goes on in others."""
        with aws_errors(f"cannot read the log {self._group}", allow="logs:DescribeLogStreams, logs:GetLogEvents"):
            self._look()
            yield from heapq.merge(*map(self._lines, self._tokens), key=lambda line: line.moment)

    def _look(self) -> None:
        pages = self._logs.get_paginator("describe_log_streams").paginate(
            logGroupName=self._group, **({"logStreamNamePrefix": self._prefix} if self._prefix else {})
        )
        try:
            names = [one["logStreamName"] for page in pages for one in page["logStreams"]]
        except self._logs.exceptions.ResourceNotFoundException:
            names = []  # until the first job, or endpoint of this name, has said something
        for name in names:
            self._tokens.setdefault(name, None)

    def _lines(self, stream: str) -> Iterator[Line]:
        host, names = host_of(stream), {"logGroupName": self._group, "logStreamName": stream}
        while True:
            before = self._tokens[stream]
            answer = self._logs.get_log_events(**names, **self._from(before))
            for event in answer["events"]:
                for text in str(event["message"]).rstrip("\n").split("\n"):
                    yield Line(moment=event["timestamp"] / 1000, host=host, text=text)
            after = self._tokens[stream] = answer["nextForwardToken"]
            # CloudWatch ends by giving the token it was asked with, and may answer nothing before.
            if after == before or (before is None and self._tail is not None):
                return

    def _from(self, token: str | None) -> dict[str, Any]:
        since = {} if self._since is None else {"startTime": int(1000 * self._since)}
        if token is not None:
            return {"nextToken": token, "startFromHead": True, **since}
        if self._tail is None:
            return {"startFromHead": True, **since}
        return {"startFromHead": False, "limit": self._tail, **since}


def host_of(stream: str) -> str:
    """`digits-2026/algo-1-1790000000` -> `algo-1`."""
    last = stream.rpartition("/")[2]
    found = re.match(r"algo-\d+", last)
    return found[0] if found else last
