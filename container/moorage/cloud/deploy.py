"""`moorage deploy`, `moorage undeploy`: an endpoint from a finished job, and away again with all that it needs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import ClientError

from moorage.cloud.aws import Passing, aws_errors, client, is_missing
from moorage.cloud.endpoint import Requests
from moorage.cloud.logs import ENDPOINTS, Logs
from moorage.cloud.watching import Jobs, Pace
from moorage.contract.s3 import split
from moorage.errors import CloudError

_READY = "InService"
_FAILED = {"Failed", "OutOfService", "UpdateRollbackFailed"}
_LAST_LINES = 20

log = logging.getLogger("moorage")


class Deployment:
    """env, region: as for every command of the cloud. Methods raise CloudError."""

    def __init__(self, env: Mapping[str, str], region: str | None = None) -> None:
        self._env, self._region = env, region
        self._sagemaker = client("sagemaker", env, region)

    def job(self, name: str) -> Mapping[str, Any]:
        """Of a job that has completed, what DescribeTrainingJob answers."""
        found = Jobs(self._env, self._region).describe(name)
        if found.status != "Completed":
            raise CloudError(
                f"the job {name} has no model to deploy", why=f"it is {found.status}",
                fix=f"wait for it (`moorage status --watch {name}`), or name a model by --model",
            )  # fmt: skip
        return found.answer

    def size(self, uri: str) -> int:
        """Bytes of the model; 0 where whoever asks may not look: the timeouts are then the shortest."""
        bucket, key = split(uri)
        s3 = client("s3", self._env, self._region)
        try:
            with aws_errors(f"cannot look at the model {uri}", allow="s3:ListBucket"):
                pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
                found = [one["Size"] for page in pages for one in page.get("Contents", ())]
        except CloudError as error:
            log.warning("%s", error)
            return 0
        if not found:
            raise CloudError(f"there is no model {uri}", fix="`aws s3 ls` of its folder shows what there is")
        return sum(found)

    def create(self, made: Requests, pace: Pace) -> Mapping[str, Any]:
        """The endpoint, once it answers. What fails is taken back: one that was there before goes on as it was."""
        before = self._describe(made.endpoint)
        if before is not None and before["EndpointStatus"] not in (_READY, *_FAILED):
            raise CloudError(
                f"the endpoint {made.endpoint} is {before['EndpointStatus']}", why="it cannot be changed meanwhile",
                fix="wait until it is InService, and repeat the command",
            )  # fmt: skip
        try:
            self._ask(before, made)
            found = self._until_ready(made, pace)
        except CloudError:
            self._take_back(made, before)
            raise
        self._scale(made)
        return found

    def _ask(self, before: Mapping[str, Any] | None, made: Requests) -> None:
        sagemaker, placed = self._sagemaker, {"EndpointName": made.endpoint, "EndpointConfigName": made.name}
        with self._step(made, "CreateModel"):
            sagemaker.create_model(**made.model)
        with self._step(made, "CreateEndpointConfig"):
            sagemaker.create_endpoint_config(**made.config)
        if before is None:
            with self._step(made, "CreateEndpoint"):
                sagemaker.create_endpoint(**placed)
        else:
            with self._step(made, "UpdateEndpoint"):
                sagemaker.update_endpoint(**placed)

    @contextmanager
    def _step(self, made: Requests, operation: str) -> Iterator[None]:
        with aws_errors(f"cannot deploy {made.endpoint}", allow=f"sagemaker:{operation}"):
            yield
        log.info("%s: %s", operation, made.endpoint if operation.endswith("Endpoint") else made.name)

    def _until_ready(self, made: Requests, pace: Pace) -> Mapping[str, Any]:
        told = ""
        while True:
            try:
                found = self._describe(made.endpoint)
            except Passing as error:
                pace.refused(error)
                pace.wait()
                continue
            status = "gone" if found is None else found["EndpointStatus"]
            if status != told:
                log.info("%s is %s", made.endpoint, status)
                told = status
            if found is not None and status == _READY and found["EndpointConfigName"] == made.name:
                return found
            if found is None or status in (_READY, *_FAILED):
                raise CloudError(
                    f"the endpoint {made.endpoint} did not come into service",
                    why=(found or {}).get("FailureReason") or f"it is {status}",
                    fix=self._said(made.endpoint)
                    or "try the model here first: `moorage serve --local`, with the image by --image",
                )
            pace.idle()
            pace.wait()

    def _said(self, endpoint: str) -> str:
        """The last that its containers logged."""
        try:
            lines = list(Logs(self._env, self._region, group=f"{ENDPOINTS}/{endpoint}", tail=_LAST_LINES).new())
        except CloudError as error:
            return f"its log cannot be read: {error.why}"
        texts = [line.text for line in lines[-_LAST_LINES:]]
        return "see what it logged last:\n    " + "\n    ".join(texts) if texts else ""

    def _take_back(self, made: Requests, before: Mapping[str, Any] | None) -> None:
        """Only what this deployment made. An update that failed was rolled back by the platform itself."""
        sagemaker, now = self._sagemaker, None
        with _quietly():
            now = self._describe(made.endpoint)
        if before is None and now is not None:
            with _quietly("endpoint", made.endpoint):
                sagemaker.delete_endpoint(EndpointName=made.endpoint)
        elif now is not None and now.get("EndpointConfigName") == made.name:
            log.warning("%s still has the new configuration %s: it stays", made.endpoint, made.name)
            return
        with _quietly("configuration", made.name):
            sagemaker.delete_endpoint_config(EndpointConfigName=made.name)
        with _quietly("model", made.name):
            sagemaker.delete_model(ModelName=made.name)
        log.warning("taken back: %s", "nothing of it is left" if before is None else "the endpoint is as it was")

    def _scale(self, made: Requests) -> None:
        if not made.scaling:
            return
        scaling = client("application-autoscaling", self._env, self._region)
        (_, target), (_, policy) = made.scaling
        what = f"{made.endpoint} is in service, but cannot be scaled"
        with aws_errors(what, allow="application-autoscaling:RegisterScalableTarget"):
            scaling.register_scalable_target(**target)
        with aws_errors(what, allow="application-autoscaling:PutScalingPolicy"):
            scaling.put_scaling_policy(**policy)
        log.info("scaled between %d and %d instances", target["MinCapacity"], target["MaxCapacity"])

    def _describe(self, endpoint: str) -> Mapping[str, Any] | None:
        with aws_errors(f"cannot look at the endpoint {endpoint}", allow="sagemaker:DescribeEndpoint"):
            try:
                found: Mapping[str, Any] = self._sagemaker.describe_endpoint(EndpointName=endpoint)
                return found
            except self._sagemaker.exceptions.ClientError as error:
                if is_missing(error):
                    return None
                raise

    def remove(self, endpoint: str) -> list[str]:
        """Delete an endpoint, and the configurations and models that `deploy` made for it. What was removed."""
        if self._describe(endpoint) is None:
            raise CloudError(
                f"there is no endpoint {endpoint} in {self._sagemaker.meta.region_name}",
                fix="`aws sagemaker list-endpoints` shows those there are; --region names another region",
            )
        with aws_errors(f"cannot delete the endpoint {endpoint}", allow="sagemaker:DeleteEndpoint"):
            self._sagemaker.delete_endpoint(EndpointName=endpoint)
        sagemaker = self._sagemaker
        made = re.compile(rf"{re.escape(endpoint)}-\d{{8}}-\d{{6}}-\d{{3}}")
        allow = "sagemaker:ListModels, sagemaker:ListEndpointConfigs"
        with aws_errors(f"cannot list what {endpoint} was made of", allow=allow):
            listed = sagemaker.get_paginator("list_endpoint_configs").paginate(NameContains=endpoint)
            configs = [one["EndpointConfigName"] for page in listed for one in page["EndpointConfigs"]]
            listed = sagemaker.get_paginator("list_models").paginate(NameContains=endpoint)
            models = [one["ModelName"] for page in listed for one in page["Models"]]
        removed = [f"endpoint {endpoint}"]
        for name in filter(made.fullmatch, configs):
            with _quietly("configuration", name, removed):
                sagemaker.delete_endpoint_config(EndpointConfigName=name)
        for name in filter(made.fullmatch, models):
            with _quietly("model", name, removed):
                sagemaker.delete_model(ModelName=name)
        return removed


@contextmanager
def _quietly(what: str = "", name: str = "", removed: list[str] | None = None) -> Iterator[None]:
    """What is not there need not be deleted; what cannot be is named, and the rest goes on."""
    try:
        with aws_errors(f"cannot delete the {what} {name}"):
            try:
                yield
            except ClientError as error:
                if is_missing(error):
                    return
                raise
    except CloudError as error:
        log.warning("%s", error)
    else:
        if removed is not None:
            removed.append(f"{what} {name}")
