"""`moorage tune` on SageMaker: the request of the search that was rehearsed, and the job at moto's server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aws import bucket_and_sagemaker, nobody
from moorage.cli import main
from moorage.cloud.model import check
from moorage.cloud.request import Submission
from moorage.cloud.space import Categorical, Continuous, Integer
from moorage.cloud.tune import tuning_job
from moorage.cloud.tuning import Objective, Tuning
from support import ROOT

REGION = "eu-central-1"
IMAGE = f"123456789012.dkr.ecr.{REGION}.amazonaws.com/moorage@sha256:{'0' * 64}"
BASE = Submission(
    name="digits-260131-120000", image=IMAGE, role="arn:aws:iam::123456789012:role/training",
    output="s3://bucket/output", program="train.py", code="s3://bucket/code/0/sourcedir.tar.gz",
    instance_type="ml.g5.2xlarge", volume_gb=30, spot=True, max_run=3600, max_wait=7200,
    checkpoints="s3://bucket/checkpoints", metrics={"val_accuracy": "val_accuracy=(.*)"},
    hyperparameters={"epochs": "27"}, tags={"team": "a"},
)  # fmt: skip

names = st.sampled_from(["lr", "weight_decay", "momentum", "layers", "batch_size"])
floats = st.floats(1e-9, 1e6, allow_nan=False)
scalings = st.sampled_from(["Auto", "Linear", "Logarithmic"])
ranges = st.one_of(
    st.builds(Continuous, name=names, low=floats, high=floats, scaling=scalings),
    st.builds(Integer, name=names, low=st.integers(1, 9), high=st.integers(10, 2**30)),
    st.builds(Categorical, name=names, values=st.lists(st.text("abc1", min_size=1), min_size=1, max_size=5).map(tuple)),
)  # fmt: skip
tunings = st.builds(
    Tuning, name=st.just(BASE.name),
    objective=st.builds(Objective, metric=st.just("val_accuracy"), maximize=st.booleans()),
    ranges=st.lists(ranges, min_size=1, max_size=5, unique_by=lambda one: one.name).map(tuple),
    strategy=st.sampled_from(["bayesian", "random", "hyperband"]), trials=st.integers(1, 500),
    parallel=st.integers(1, 10), early_stopping=st.booleans(), min_resource=st.none() | st.integers(1, 9),
    max_resource=st.none() | st.integers(9, 81), warm_start=st.sampled_from([(), ("parent-1",), ("a", "b")]),
    warm_start_type=st.sampled_from(["identical", "transfer"]), max_run=st.none() | st.integers(120, 10**6),
    target=st.none() | st.floats(-10, 10), patience=st.none() | st.integers(3, 50),
    seed=st.none() | st.integers(0, 2**31 - 1),
)  # fmt: skip


@settings(max_examples=200)
@given(tunings)
def test_every_request_is_as_aws_s_model_of_it(searched: Tuning) -> None:
    assert check("CreateHyperParameterTuningJob", tuning_job(searched, BASE)) == ()


def test_what_is_searched_is_as_it_was_described() -> None:
    searched = Tuning(
        name=BASE.name, objective=Objective(metric="val_accuracy", maximize=True), strategy="hyperband", trials=20,
        parallel=2, max_resource=27, seed=7, target=0.99, patience=5, warm_start=("parent",),
        ranges=(
            Continuous(name="lr", low=1e-4, high=0.1, scaling="Logarithmic"), Integer(name="layers", low=1, high=8),
            Categorical(name="batch_size", values=("16", "32")),
        ),
    )  # fmt: skip
    made = tuning_job(searched, BASE)
    assert made["HyperParameterTuningJobConfig"] == {
        "Strategy": "Hyperband",
        "StrategyConfig": {"HyperbandStrategyConfig": {"MaxResource": 27}},
        "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "val_accuracy"},
        "ResourceLimits": {"MaxNumberOfTrainingJobs": 20, "MaxParallelTrainingJobs": 2},
        "ParameterRanges": {
            "ContinuousParameterRanges": [
                {"Name": "lr", "MinValue": "0.0001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
            ],
            "IntegerParameterRanges": [{"Name": "layers", "MinValue": "1", "MaxValue": "8", "ScalingType": "Auto"}],
            "CategoricalParameterRanges": [{"Name": "batch_size", "Values": ["16", "32"]}],
        },
        "TrainingJobEarlyStoppingType": "Off",
        "TuningJobCompletionCriteria": {
            "TargetObjectiveMetricValue": 0.99,
            "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 5},
        },
        "RandomSeed": 7,
    }
    definition = made["TrainingJobDefinition"]
    assert definition["StaticHyperParameters"]["epochs"] == "27" and definition["EnableManagedSpotTraining"] is True
    assert definition["CheckpointConfig"]["S3Uri"] == "s3://bucket/checkpoints"
    assert made["WarmStartConfig"]["ParentHyperParameterTuningJobs"] == [{"HyperParameterTuningJobName": "parent"}]
    assert made["Tags"] == [{"Key": "team", "Value": "a"}]


# From the job file to moto


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "examples" / "digits" / "train.py", tmp_path)
    (tmp_path / "moorage.toml").write_text(
        'program = "train.py"\ninstance_type = "ml.g5.2xlarge"\nmax_wait = "2d"\n'
        '[hyperparameters]\nepochs = 27\nlr = 0.1\n'
        '[tune]\nobjective = "max:val_accuracy"\nstrategy = "hyperband"\ntrials = 20\nparallel = 2\n'
        '[tune.ranges]\nlr = "1e-4:1e-1:log"\n'
        f'[submit]\nimage = "{IMAGE}"\nrole = "training"\nbucket = "bucket"\n'
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    nobody(monkeypatch)
    return tmp_path


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, Any]]:
    with bucket_and_sagemaker(monkeypatch, REGION) as clients:
        yield clients


def test_a_dry_run_needs_no_credentials(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--dry-run", "-q"]) == 0
    made = json.loads(capsys.readouterr().out)
    name = made["HyperParameterTuningJobName"]
    definition = made["TrainingJobDefinition"]
    assert definition["StaticHyperParameters"].keys() == {"sagemaker_program", "sagemaker_submit_directory", "epochs"}
    assert definition["CheckpointConfig"]["S3Uri"] == f"s3://bucket/moorage/checkpoints/{name}"
    assert definition["Environment"]["MOORAGE_BEST"] == "max:val_accuracy"
    hyperband = made["HyperParameterTuningJobConfig"]["StrategyConfig"]["HyperbandStrategyConfig"]
    assert hyperband == {"MaxResource": 27}, "as the local trials have it, by the hyperparameter epochs"


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--early-stopping"], "hyperband-early-stopping"),
        (["--objective", "max:nothing"], "objective-undefined"),
        (["--checkpoints-s3", "none"], "spot-without-checkpoints"),
        (["--range", "momentum=0.9:0.5"], "range-empty"),
        (["--", "--verbose"], "tune-arguments"),
        (["-p", "api_key=x"], "secret"),
    ],
)
def test_what_the_platform_would_refuse_stops_it(
    project: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: str
) -> None:
    program = ["train.py"] if "--" in flags else []
    assert main(["tune", *program, "--dry-run", *flags]) == 78
    assert f"({code})" in capsys.readouterr().err


def test_the_tuning_job_is_created_and_its_code_uploaded(
    project: Path, aws: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--json"]) == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    found = aws["sagemaker"].describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=made["name"])
    assert found["HyperParameterTuningJobArn"] == made["arn"]
    assert found["HyperParameterTuningJobConfig"]["Strategy"] == "Hyperband"
    code = found["TrainingJobDefinition"]["StaticHyperParameters"]["sagemaker_submit_directory"]
    assert aws["s3"].head_object(Bucket="bucket", Key=code.removeprefix("s3://bucket/"))["ContentLength"] > 0
    assert "uploaded 2 files" in err and f"moorage list {made['name']}" in err


def test_dry_run_is_not_of_a_study_here(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--local", "--dry-run"]) == 78
    assert "--dry-run is of tuning jobs on SageMaker" in capsys.readouterr().err
