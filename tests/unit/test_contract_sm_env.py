"""SM_*: what the official toolkit gives, without what it does besides."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import Job
from moorage.contract.program import Program, prepare
from moorage.contract.secrets import HIDDEN
from moorage.contract.sm_env import MAX_STRING, environment, for_log
from moorage.errors import ConfigError

RESOURCE: dict[str, Any] = {
    "current_host": "algo-2",
    "current_instance_type": "ml.g5.xlarge",
    "current_group_name": "b",
    "hosts": ["algo-3", "algo-2", "algo-1"],
    "instance_groups": [
        {"instance_group_name": "a", "instance_type": "ml.m5.large", "hosts": ["algo-1"]},
        {"instance_group_name": "b", "instance_type": "ml.g5.xlarge", "hosts": ["algo-3", "algo-2"]},
    ],
    "network_interface_name": "eth0",
    "topology": None,
}
HYPERPARAMETERS = {
    "lr": "0.1",
    "name": '"adam"',
    "flag": "True",
    "none": "null",
    "layers": "[1, 2]",
    "batch-size": "8",
    "sagemaker_program": '"train.py"',
    "sagemaker_region": '"eu-west-1"',
    "sagemaker_container_log_level": "30",
    "sagemaker_torch_distributed_enabled": "true",
    "sagemaker_job_name": '"job-1"',
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(tmp_path / "ml")
    job.write("resourceconfig", RESOURCE)
    job.write("inputdataconfig", {"train": {"TrainingInputMode": "File"}, "test": {}})
    job.hyperparameters(**HYPERPARAMETERS)
    job.code(train="")
    job.env["PATH"] = os.environ["PATH"]
    return job


def built(job: Job) -> dict[str, str]:
    config = job.config()
    return environment(config, prepare(config, job.env), job.env)


def test_the_values_are_those_of_the_toolkit(job: Job) -> None:
    """Its own, made in a process of its own, for a job whose hosts it was given sorted."""
    groups = [dict(group, hosts=sorted(group["hosts"])) for group in RESOURCE["instance_groups"]]
    job.write("resourceconfig", {**RESOURCE, "hosts": ["algo-1", "algo-2", "algo-3"], "instance_groups": groups})
    program = (
        "import json; from sagemaker_training.environment import Environment as E; print(json.dumps(E().to_env_vars()))"
    )
    run = subprocess.run([sys.executable, "-c", program], env=job.env, capture_output=True, text=True, check=True)
    job.write("resourceconfig", RESOURCE)
    theirs, ours = json.loads(run.stdout), built(job)
    assert {key: ours[key] for key in theirs} == theirs
    assert theirs["SM_HPS"] == '{"batch-size":8,"flag":"True","layers":[1,2],"lr":0.1,"name":"adam","none":null}'


def test_what_is_added(job: Job) -> None:
    job.write("checkpointconfig", {"LocalPath": "/somewhere/else"})
    env = built(job)
    expected = {
        "SM_CHECKPOINT_DIR": "/somewhere/else",
        "SM_INPUT_DATA_DIR": str(job.base / "input/data"),
        "SM_SOURCE_DIR": str(job.base / "code"),
        "SM_ENTRY_SCRIPT": "train.py",
        "SM_HOST_COUNT": "3",
        "SM_CURRENT_HOST_RANK": "1",
        "SM_HP_BATCH-SIZE": "8",
        "SM_HP_BATCH_SIZE": "8",
        "SAGEMAKER_JOB_NAME": "job-1",
        "SAGEMAKER_REGION": "eu-west-1",
        "CURRENT_HOST": "algo-2",
    }
    assert {key: env[key] for key in expected} == expected
    assert "SM_MASTER_PORT" not in env


def test_hosts_are_sorted_wherever_they_stand(job: Job) -> None:
    env = built(job)
    hosts = ["algo-1", "algo-2", "algo-3"]
    training = json.loads(env["SM_TRAINING_ENV"])
    assert json.loads(env["SM_HOSTS"]) == training["hosts"] == training["resource_config"]["hosts"] == hosts
    assert json.loads(env["SM_CURRENT_INSTANCE_GROUP_HOSTS"]) == ["algo-2", "algo-3"]


def test_one_consistent_set(job: Job) -> None:
    env = built(job)
    training = json.loads(env["SM_TRAINING_ENV"])
    compared = 0
    for key, value in training.items():
        name = f"SM_{key.upper()}"
        if name in env:
            assert env[name] == (value if isinstance(value, str) else "" if value is None else env[name])
            assert isinstance(value, str) or value is None or json.loads(env[name]) == value
            compared += 1
    assert compared > 20
    assert training["hyperparameters"] == json.loads(env["SM_HPS"])
    assert training["user_entry_point"] == env["SM_ENTRY_SCRIPT"]


def test_ours_and_the_platforms_are_not_for_programs(job: Job) -> None:
    job.hyperparameters(lr="1", moorage_strategy="ddp", _tuning_objective_metric="loss")
    env = built(job)
    assert json.loads(env["SM_HPS"]) == {"lr": 1}
    assert not [key for key in env if "MOORAGE" in key or "TUNING" in key]


def test_code_from_elsewhere_is_said_where_it_came_from(job: Job, tmp_path: Path) -> None:
    job.hyperparameters(sagemaker_submit_directory=str(job.base / "code"))
    assert built(job)["SM_MODULE_DIR"] == str(job.base / "code")
    config = job.config()
    program = Program(argv=(), cwd=tmp_path, env={}, fingerprint="", description="", code=tmp_path, entry="pkg.train")
    env = environment(config, program, job.env)
    assert env["SM_MODULE_DIR"] == str(job.base / "code"), "as the job says it"
    job.hyperparameters()
    env = environment(job.config(), program, job.env)
    assert (env["SM_MODULE_DIR"], env["SM_MODULE_NAME"]) == (str(tmp_path), "pkg.train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("hyperparameters", None),
        ("inputdataconfig", None),
        ("hyperparameters", {"sagemaker_job_name": "123", "sagemaker_region": "null", "lr": "[" * 3000}),
        ("resourceconfig", {"current_host": "a", "hosts": ["a"], "current_group_name": None, "instance_groups": None}),
    ],
)
def test_files_that_the_toolkit_itself_dies_of(job: Job, name: str, content: Any) -> None:
    path = job.base / f"input/config/{name}.json"
    path.unlink() if content is None else job.write(name, content)
    job.env |= {"SAGEMAKER_CONTAINER_LOG_LEVEL": "INFO", "AWS_PROFILE": "nobody"}
    assert built(job)["SM_MODEL_DIR"] == str(job.base / "model")


CONTAINED = """
import os, sys
import boto3
from pathlib import Path
from jobs import Job
from moorage.contract.sm_env import environment

job, other = Job(Path(sys.argv[1])), Job(Path(sys.argv[2]))
before = dict(os.environ)
for each in (job, other):
    assert environment(each.config(), None, each.env)["SM_MODEL_DIR"] == f"{each.base}/model"
assert dict(os.environ) == before
assert sys.modules["boto3"] is boto3
assert "sagemaker_training.environment" not in sys.modules
from sagemaker_training import environment as theirs
assert theirs.boto3 is boto3, "a stand-in is left for others"
assert theirs.model_dir == f"{before['SAGEMAKER_BASE_DIR']}/model", "constants of a job are left for others"
"""


def test_nothing_is_left_behind(job: Job, tmp_path: Path) -> None:
    (job.base / "code/train.py").unlink()
    (job.base / "code").rmdir()
    files = sorted(job.base.rglob("*"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SAGEMAKER_BASE_DIR": str(tmp_path / "third")}
    subprocess.run([sys.executable, "-c", CONTAINED, job.base, tmp_path / "other"], env=env, check=True)
    assert sorted(job.base.rglob("*")) == files, "the toolkit creates the code folder"


def test_hyperparameters_are_not_logged_by_the_toolkit(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    job.hyperparameters(api_key="hunter22")
    assert built(job)["SM_HP_API_KEY"] == "hunter22"
    assert "hunter22" not in caplog.text


def test_a_missing_toolkit_is_said(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker_training", None)
    before = dict(os.environ)
    with pytest.raises(ConfigError, match=r"sagemaker_training cannot be imported.*install moorage"):
        built(job)
    assert dict(os.environ) == before


def test_a_variable_that_no_process_can_have_is_left_out(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    job.hyperparameters(**{f"p{number}": "x" * 2500 for number in range(100)})
    env = built(job)
    assert "SM_HPS" not in env
    assert "SM_HPS is not set" in caplog.text
    assert env["SM_HP_P99"] == "x" * 2500
    assert max(len(f"{key}={value}") for key, value in env.items()) < MAX_STRING
    subprocess.run([sys.executable, "-c", ""], env=env, check=True)


def test_no_secret_is_in_what_is_logged(job: Job) -> None:
    job.hyperparameters(api_key="hunter22", db='{"password": "hunter33", "host": "h"}', note="ghp_" + "a" * 30, lr="1")
    env = built(job)
    shown = for_log({**env, "WANDB_API_KEY": "hunter44", "COMMAND": "run hunter44 now"})
    text = json.dumps(shown)
    for secret in ("hunter22", "hunter33", "hunter44", "ghp_aaa"):
        assert secret not in text
    assert shown["COMMAND"] == f"run {HIDDEN} now"
    assert json.loads(shown["SM_HPS"]) == {
        "api_key": HIDDEN, "db": {"password": HIDDEN, "host": "h"}, "note": HIDDEN, "lr": 1,
    }  # fmt: skip
    assert json.loads(shown["SM_USER_ARGS"])[:2] == ["--api_key", HIDDEN]
    assert json.loads(shown["SM_TRAINING_ENV"])["hyperparameters"]["api_key"] == HIDDEN
    assert shown["SM_HP_LR"] == "1"
    assert env["SM_HP_API_KEY"] == "hunter22", "the program itself gets it"
