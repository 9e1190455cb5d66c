"""AWS's API where moto has none or lets nothing happen: jobs and endpoints with a life, in front of moto's server.

A real HTTP server. What it is not told of, it passes on to moto.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from aws import aws_server

REGION = "eu-central-1"
NAME = "digits-2026-01-31-12-00-00-123"
T0 = 1790000000.0
"""When the job was created."""

Answer = Mapping[str, Any] | tuple[int, Mapping[str, Any]]
"""The body; or an HTTP status, and the body, whose __type is the error's code."""


@dataclass
class Platform:
    """endpoint: of the server. answers: by operation, as `SageMaker.StopTrainingJob`, made of the request's body; None
    is moto's. asked: how often each operation was. bodies: of all requests.
    """

    endpoint: str = ""
    answers: dict[str, Callable[[Mapping[str, Any]], Answer | None]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    bodies: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    """Operations of services that speak XML, as IAM, which whoever asks has no permission for."""

    def script(self, operation: str, *answers: Answer) -> None:
        """Each once, and the last one from then on."""
        left = list(answers)
        self.answers[operation] = lambda _: left.pop(0) if len(left) > 1 else left[0]


_DENIED = (
    "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not authorized</Message></Error>"
    "<RequestId>1</RequestId></ErrorResponse>"
)


def job(secondary: str = "Training", *, status: str = "InProgress", **more: Any) -> dict[str, Any]:
    """What DescribeTrainingJob answers of a job on Spot that was interrupted once, times as its JSON has them."""
    phases = [("Starting", 0, 80), ("Training", 80, 200), ("Interrupted", 200, 260), ("Training", 260, None)]
    transitions = [
        {"Status": name, "StartTime": T0 + begun, "StatusMessage": f"it is {name}",
         **({"EndTime": T0 + ended} if ended else {})}
        for name, begun, ended in phases
    ]  # fmt: skip
    return {
        "TrainingJobName": NAME,
        "TrainingJobArn": f"arn:aws:sagemaker:{REGION}:123456789012:training-job/{NAME}",
        "ModelArtifacts": {"S3ModelArtifacts": "s3://bucket/output/model.tar.gz"},
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary,
        "ResourceConfig": {"InstanceType": "ml.g5.2xlarge", "InstanceCount": 2, "VolumeSizeInGB": 30},
        "EnableManagedSpotTraining": True,
        "CreationTime": T0,
        "TrainingStartTime": T0 + 80,
        "SecondaryStatusTransitions": transitions,
        "CheckpointConfig": {"S3Uri": "s3://bucket/checkpoints/digits"},
        "FinalMetricDataList": [{"MetricName": "val_accuracy", "Value": 0.97, "Timestamp": T0 + 250}],
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        **more,
    }


def say(cloudwatch: Any, stream: str, *lines: tuple[float, str], name: str = NAME) -> None:
    """Into CloudWatch: at so many seconds after 100 seconds ago."""
    given = {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamName": f"{name}/{stream}"}
    if not cloudwatch.describe_log_streams(logGroupName=given["logGroupName"], logStreamNamePrefix=f"{name}/{stream}")[
        "logStreams"
    ]:
        cloudwatch.create_log_stream(**given)
    start = time.time() - 100
    events = [{"timestamp": int(1000 * (start + at)), "message": text} for at, text in lines]
    cloudwatch.put_log_events(**given, logEvents=events)


def refusal(code: str, message: str, status: int = 400) -> Answer:
    return status, {"__type": code, "message": message}


@contextlib.contextmanager
def platform() -> Iterator[Platform]:
    told = Platform()
    with aws_server() as moto:
        server = _Server(("127.0.0.1", 0), _Handler)
        server.told, server.moto = told, urlsplit(moto).netloc
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        told.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    told: Platform
    moto: str


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _answer(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        operation = self.headers.get("X-Amz-Target", "")
        told = self.server.told
        if (refused := re.match(rb"Action=(\w+)", data)) and refused[1].decode() in told.denied:
            self._send(403, _DENIED.encode(), "text/xml")
            return
        if operation:
            told.asked[operation] += 1
            body = json.loads(data or b"{}")
            told.bodies.append((operation, body))
            answer_to = told.answers.get(operation)
            if answer_to is not None and (scripted := answer_to(body)) is not None:
                status, answer = scripted if isinstance(scripted, tuple) else (200, scripted)
                self._send(status, json.dumps(answer).encode(), "application/x-amz-json-1.1")
                return
        connection = http.client.HTTPConnection(self.server.moto, timeout=30)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, data, dict(self.headers))
            answered = connection.getresponse()
            content = answered.read()
            more = [(k, v) for k, v in answered.getheaders() if k.lower() in ("last-modified", "etag")]
            self._send(answered.status, content, answered.headers.get("Content-Type", ""), more, answered.headers)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _answer

    def _send(self, status: int, body: bytes, kind: str, more: Any = (), given: Any = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        length = given.get("Content-Length") if given is not None and self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        for name, value in more:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
