"""The same request as a program of the SageMaker Python SDK, of either generation, and as a step of a Pipeline.

sagemaker 2.257 (Estimator) and sagemaker-train 1.27 (ModelTrainer), whose constructors these arguments are of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from moorage.errors import ConfigError

Request = Mapping[str, Any]


class _Call:
    """A call in Python: its name, and its arguments as source."""

    def __init__(self, called: str, /, *positional: object, **given: object) -> None:
        self._called, self._positional, self._given = called, positional, given

    def __repr__(self) -> str:
        return source(self)

    def lines(self, depth: int) -> str:
        given = {key: value for key, value in self._given.items() if value not in (None, [], {}, "")}
        parts = [*(source(one, depth + 1) for one in self._positional)]
        parts += [f"{key}={source(value, depth + 1)}" for key, value in given.items()]
        return _bracketed(f"{self._called}(", parts, ")", depth)


def source(value: object, depth: int = 0) -> str:
    """Python source of calls, maps, lists and plain values; one entry per line where a line would be too long."""
    if isinstance(value, _Call):
        return value.lines(depth)
    if isinstance(value, Mapping):
        parts = [f"{key!r}: {source(one, depth + 1)}" for key, one in value.items()]
        return _bracketed("{", parts, "}", depth)
    if isinstance(value, list | tuple):
        return _bracketed("[", [source(one, depth + 1) for one in value], "]", depth)
    return repr(value)


def _bracketed(begin: str, parts: list[str], end: str, depth: int) -> str:
    line = begin + ", ".join(parts) + end
    if len(line) + 4 * depth <= 88 and "\n" not in line:
        return line
    inner = "    " * (depth + 1)
    return begin + "\n" + "".join(f"{inner}{part},\n" for part in parts) + "    " * depth + end


def sdk_v2(request: Request, region: str) -> str:
    """Estimator. It always asks for a volume: 30 GB where the request has none."""
    spec, output, resources = (request[k] for k in ("AlgorithmSpecification", "OutputDataConfig", "ResourceConfig"))
    stopping, vpc = request["StoppingCondition"], request.get("VpcConfig", {})
    checkpoints = request.get("CheckpointConfig", {})
    groups = [
        _Call("InstanceGroup", one["InstanceGroupName"], one["InstanceType"], one["InstanceCount"])
        for one in resources.get("InstanceGroups", ())
    ]
    estimator = _Call(
        "Estimator", spec["TrainingImage"], role=request["RoleArn"], instance_type=resources.get("InstanceType"),
        instance_count=resources.get("InstanceCount"), instance_groups=groups,
        volume_size=resources.get("VolumeSizeInGB"), volume_kms_key=resources.get("VolumeKmsKeyId"),
        keep_alive_period_in_seconds=resources.get("KeepAlivePeriodInSeconds"),
        use_spot_instances=request.get("EnableManagedSpotTraining"), max_run=stopping["MaxRuntimeInSeconds"],
        max_wait=stopping.get("MaxWaitTimeInSeconds"),
        max_retry_attempts=request.get("RetryStrategy", {}).get("MaximumRetryAttempts"),
        hyperparameters=request.get("HyperParameters"), environment=request.get("Environment"),
        metric_definitions=spec.get("MetricDefinitions"), container_entry_point=spec.get("ContainerEntrypoint"),
        container_arguments=spec.get("ContainerArguments"), checkpoint_s3_uri=checkpoints.get("S3Uri"),
        checkpoint_local_path=checkpoints.get("LocalPath"), output_path=output["S3OutputPath"],
        output_kms_key=output.get("KmsKeyId"),
        disable_output_compression=output.get("CompressionType") == "NONE" or None,
        subnets=vpc.get("Subnets"), security_group_ids=vpc.get("SecurityGroupIds"),
        enable_network_isolation=request.get("EnableNetworkIsolation"),
        encrypt_inter_container_traffic=request.get("EnableInterContainerTrafficEncryption"), tags=request.get("Tags"),
        # What it adds by itself otherwise.
        disable_profiler=True, debugger_hook_config=False, sagemaker_session=_Name("session"),
    )  # fmt: skip
    inputs = {one["ChannelName"]: _input_v2(one) for one in request.get("InputDataConfig", ())}
    fit = _Call("estimator.fit", inputs=inputs, job_name=request["TrainingJobName"], wait=False)
    return (
        "import boto3\nimport sagemaker\nfrom sagemaker.estimator import Estimator\n"
        "from sagemaker.inputs import TrainingInput\n"
        + ("from sagemaker.instance_group import InstanceGroup\n" if groups else "")
        + f"\nsession = sagemaker.Session(boto3.Session(region_name={region!r}))\n"
        f"estimator = {estimator!r}\n{fit!r}\nprint(estimator.latest_training_job.name)\n"
    )


def _input_v2(channel: Mapping[str, Any]) -> _Call:
    from_s3 = channel["DataSource"]["S3DataSource"]
    return _Call(
        "TrainingInput", from_s3["S3Uri"], distribution=from_s3.get("S3DataDistributionType"),
        content_type=channel.get("ContentType"), input_mode=channel.get("InputMode"),
        instance_groups=from_s3.get("InstanceGroupNames"),
    )  # fmt: skip


class _Name:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


def sdk_v3(request: Request, region: str) -> str:
    """ModelTrainer. It names the job by itself, and always asks for a volume.

    Raises ConfigError for arguments of the program, which it can only give by a driver of its own in place of `train`.
    """
    spec, resources, stopping = (request[k] for k in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"))
    if spec.get("ContainerArguments"):
        raise ConfigError(
            "ModelTrainer of SDK v3 cannot give the program arguments",
            why="it would put a driver of its own in the place of `train`",
            fix="make them hyperparameters, which are arguments too; or --print sdk-v2, boto3, cli or pipeline",
        )
    used = ["Compute", "OutputDataConfig", "StoppingCondition"]

    def of(shape: str, value: Mapping[str, Any] | None) -> _Call | None:
        if not value:
            return None
        if shape not in used:
            used.append(shape)
        return _Call(shape, **{_snake(key): _snaked(one) for key, one in value.items()})

    spot = {"EnableManagedSpotTraining": True} if request.get("EnableManagedSpotTraining") else {}
    keys = ("EnableNetworkIsolation", "EnableInterContainerTrafficEncryption")
    networking = {**request.get("VpcConfig", {}), **{key: request[key] for key in keys if request.get(key)}}
    trainer = _Call(
        "ModelTrainer", training_image=spec["TrainingImage"], role=request["RoleArn"],
        base_job_name=re.sub(r"-\d{4}-\d\d-\d\d-.*", "", request["TrainingJobName"]),
        compute=of("Compute", {**resources, **spot}), stopping_condition=of("StoppingCondition", stopping),
        hyperparameters=request.get("HyperParameters"), environment=request.get("Environment"),
        input_data_config=[of("Channel", one) for one in request.get("InputDataConfig", ())],
        output_data_config=of("OutputDataConfig", {"CompressionType": "GZIP", **request["OutputDataConfig"]}),
        checkpoint_config=of("CheckpointConfig", request.get("CheckpointConfig")),
        networking=of("Networking", networking), tags=[of("Tag", one) for one in request.get("Tags", ())],
        sagemaker_session=_Name("session"),
    )  # fmt: skip
    then = []
    if metrics := [of("MetricDefinition", one) for one in spec.get("MetricDefinitions", ())]:
        then.append(repr(_Call("trainer.with_metric_definitions", metrics)))
    if retries := of("RetryStrategy", request.get("RetryStrategy")):
        then.append(repr(_Call("trainer.with_retry_strategy", retries)))
    return (
        "import os\n\nimport boto3\nfrom sagemaker.core.helper.session_helper import Session\n"
        f"from sagemaker.core.training.configs import {', '.join(sorted(used))}\n"
        "from sagemaker.train import ModelTrainer\n"
        "\n# ModelTrainer refuses a role that may not do all that any training of its own might want.\n"
        'os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")\n'
        f"session = Session(boto3.Session(region_name={region!r}))\ntrainer = {trainer!r}\n"
        + "".join(f"{line}\n" for line in then)
        + "trainer.train(wait=False)\n"
    )


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])|(?<=[A-Z])([A-Z])(?=[a-z])", r"_\1\2", name).lower()


def _snaked(value: object) -> object:
    if isinstance(value, Mapping):
        return {_snake(key): _snaked(one) for key, one in value.items()}
    return [_snaked(one) for one in value] if isinstance(value, list) else value


def pipeline(request: Request, region: str) -> str:
    """A Pipeline with the job as its one step, through boto3. A step has no name of a job: each execution makes one.

    https://docs.aws.amazon.com/sagemaker/latest/dg/build-and-manage-steps-types.html
    """
    name = re.sub(r"-\d{4}-\d\d-\d\d-.*", "", request["TrainingJobName"])
    arguments = {key: value for key, value in request.items() if key != "TrainingJobName"}
    step = {"Name": "Train", "Type": "Training", "Arguments": arguments}
    definition = {"Version": "2020-12-01", "Parameters": [], "Steps": [step]}
    return (
        f"import json\n\nimport boto3\n\nDEFINITION = {source(definition)}\n\n"
        f'sagemaker = boto3.client("sagemaker", region_name={region!r})\n'
        f'given = {{"PipelineName": {name!r}, "RoleArn": {request["RoleArn"]!r}, '
        '"PipelineDefinition": json.dumps(DEFINITION)}\n'
        'try:\n    print(sagemaker.create_pipeline(**given)["PipelineArn"])\n'
        "except sagemaker.exceptions.ClientError as error:\n"
        '    if "already exist" not in str(error):\n        raise\n'
        '    print(sagemaker.update_pipeline(**given)["PipelineArn"])\n'
        f"# Each execution is a job: sagemaker.start_pipeline_execution(PipelineName={name!r})\n"
    )
