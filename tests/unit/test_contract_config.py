"""The job's configuration files, well-formed and not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import RESOURCE, Job
from moorage.contract.config import Channel, InstanceGroup, JobConfig
from moorage.contract.paths import Paths
from moorage.errors import ConfigError


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_whole_job(job: Job) -> None:
    job.write(
        "resourceconfig",
        {
            "current_host": "algo-2",
            "current_instance_type": "ml.g5.xlarge",
            "current_group_name": "gpu",
            "hosts": ["algo-3", "algo-10", "algo-2"],
            "instance_groups": [
                {"instance_group_name": "gpu", "instance_type": "ml.g5.xlarge", "hosts": ["algo-3", "algo-2"]},
                {"instance_group_name": "cpu", "instance_type": "ml.m5.large", "hosts": ["algo-10"]},
            ],
            "network_interface_name": "eth0",
            "topology": None,
        },
    )
    job.write("inputdataconfig", {"train": {"TrainingInputMode": "FastFile", "ContentType": "x"}, "code": None})
    job.write("checkpointconfig", {"LocalPath": "/opt/ml/elsewhere"})
    job.hyperparameters(
        lr="0.1", sagemaker_program="t.py", moorage_strategy="ddp", _tuning_objective_metric="loss", native=[1, True]
    )
    job.env |= {"TRAINING_JOB_NAME": "job-1", "TRAINING_JOB_ARN": "arn:x", "MOORAGE_GRACE": "50"}
    config = job.config()
    assert config.hosts == ("algo-10", "algo-2", "algo-3")
    assert (config.current_host, config.host_rank) == ("algo-2", 1)
    assert (config.name, config.arn) == ("job-1", "arn:x")
    assert (config.instance_type, config.current_group, config.network_interface) == ("ml.g5.xlarge", "gpu", "eth0")
    assert config.instance_groups[0] == InstanceGroup(
        name="gpu", instance_type="ml.g5.xlarge", hosts=("algo-2", "algo-3")
    )
    assert config.channel("train") == Channel(
        name="train", folder=job.base / "input/data/train", input_mode="FastFile", content_type="x"
    )
    assert [channel.name for channel in config.channels] == ["code", "train"]
    assert config.is_trial
    assert config.checkpoint_folder == Path("/opt/ml/elsewhere/job-1"), "trials may share their prefix"
    assert dict(config.hyperparameters) == {"lr": "0.1", "native": "[1, true]"}
    assert dict(config.sagemaker) == {"sagemaker_program": "t.py"}
    assert (config.settings.strategy, config.settings.grace) == ("ddp", 50.0)


def test_only_the_resource_config_has_to_be_there(job: Job) -> None:
    config = job.config()
    assert (config.name, config.instance_type, config.channels) == ("local", "local", ())
    assert config.checkpoint_folder == job.base / "checkpoints"
    assert not config.hyperparameters


def test_a_program_run_by_hand_needs_no_file_at_all(tmp_path: Path) -> None:
    config = JobConfig.local({}, paths=Paths(base=tmp_path), defaults={"seed": 5})
    assert (config.hosts, config.host_rank, config.settings.seed) == (("localhost",), 0, 5)
    assert list(tmp_path.iterdir()) == []


def test_the_job_name_of_script_mode_is_quoted_as_json(job: Job) -> None:
    job.hyperparameters(sagemaker_job_name='"job-7"')
    assert job.config().name == "job-7"


def test_secrets_are_not_in_the_repr(job: Job) -> None:
    job.hyperparameters(api_key="hunter22", sagemaker_s3_output="s3://hunter22")
    assert "hunter22" not in repr(job.config())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("resourceconfig", None, ["resourceconfig.json is missing", "SAGEMAKER_BASE_DIR", "current_host"]),
        ("resourceconfig", "{", ["resourceconfig.json is not valid JSON", "line 1 column"]),
        ("resourceconfig", "[" * 100_000, ["resourceconfig.json is not valid JSON"]),
        ("resourceconfig", [1], ["resourceconfig.json holds a list", "one JSON object"]),
        ("resourceconfig", {**RESOURCE, "current_host": "algo-9"}, ["'algo-9' is not among hosts ['algo-1']"]),
        ("resourceconfig", {**RESOURCE, "hosts": []}, ["'hosts' must be a list of host names"]),
        ("resourceconfig", {**RESOURCE, "hosts": "algo-1"}, ["'hosts' must be a list of host names"]),
        ("resourceconfig", {"current_host": "algo-1"}, ["'hosts' must be a list of host names", "None"]),
        ("resourceconfig", {**RESOURCE, "hosts": ["algo-1", "algo-1"]}, ["names a host twice"]),
        ("resourceconfig", {**RESOURCE, "instance_groups": [{}]}, ["'instance_groups'", "instance_group_name"]),
        ("resourceconfig", {**RESOURCE, "instance_groups": {"a": 1}}, ["'instance_groups'"]),
        (
            "resourceconfig",
            {**RESOURCE, "instance_groups": [{"instance_group_name": "g", "instance_type": "t", "hosts": "algo-1"}]},
            ["'instance_groups'", "hosts is 'algo-1'"],
        ),
        ("hyperparameters", '{"api_key": "hunter22",}', ["hyperparameters.json is not valid JSON"]),
        ("hyperparameters", '"text"', ["hyperparameters.json holds a str"]),
        ("inputdataconfig", {"../train": {}}, ["'../train' is not a channel name"]),
        ("inputdataconfig", {"..": {}}, ["'..' is not a channel name"]),
        ("inputdataconfig", {"train": "File"}, ["channel 'train' holds a str"]),
        ("checkpointconfig", {"LocalPath": "checkpoints"}, ["LocalPath 'checkpoints' is not an absolute path"]),
        ("checkpointconfig", {"LocalPath": 5}, ["LocalPath 5"]),
    ],
)
def test_a_bad_file_is_named_with_its_fault(job: Job, name: str, content: Any, says: list[str]) -> None:
    if content is None:
        (job.base / f"input/config/{name}.json").unlink()
    else:
        job.write(name, content)
    with pytest.raises(ConfigError) as caught:
        job.config()
    message = str(caught.value)
    assert f"{name}.json" in message
    for part in says:
        assert part in message
    assert "hunter22" not in message
    assert caught.value.fix


def test_a_file_that_is_not_utf8(job: Job) -> None:
    (job.base / "input/config/hyperparameters.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match=r"hyperparameters\.json is not valid JSON"):
        job.config()


def test_a_folder_in_the_place_of_a_file(job: Job) -> None:
    (job.base / "input/config/hyperparameters.json").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*hyperparameters\.json"):
        job.config()


def test_an_unknown_channel_names_those_there_are(job: Job) -> None:
    job.write("inputdataconfig", {"train": {}, "test": {}})
    with pytest.raises(ConfigError, match=r"no channel 'val'.*test, train"):
        job.config().channel("val")


def test_paths_are_those_of_the_platform_or_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = Paths.from_env({})
    assert platform.failure == Path("/opt/ml/output/failure")
    assert (platform.model, platform.code) == (Path("/opt/ml/model"), Path("/opt/ml/code"))
    monkeypatch.chdir(tmp_path)
    assert Paths.from_env({"SAGEMAKER_BASE_DIR": "ml"}).data == tmp_path / "ml/input/data"
    assert list(tmp_path.iterdir()) == []
