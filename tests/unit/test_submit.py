"""`moorage submit`: the code packed once, the request checked without AWS, the job created at a server of its API."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aws import bucket_and_sagemaker, nobody
from conftest import FULL
from moorage.cli.app import main
from moorage.cloud import rules
from moorage.cloud.model import check
from moorage.cloud.packing import pack
from moorage.cloud.request import Group, S3Channel, Submission, training_job
from moorage.errors import ConfigError
from support import ROOT

IMAGE = f"123456789012.dkr.ecr.eu-central-1.amazonaws.com/moorage@sha256:{'a' * 64}"
GOOD = Submission(
    name="digits-1", image=IMAGE, role="arn:aws:iam::123456789012:role/training", output="s3://bucket/output",
    program="train.py", code="s3://bucket/code/sourcedir.tar.gz", instance_type="ml.c6i.xlarge", volume_gb=30,
    checkpoints="s3://bucket/checkpoints", channels={"train": S3Channel(uri="s3://bucket/digits")}, retries=3,
)  # fmt: skip

G = (Group(name="a", instance_type="ml.g5.xlarge", hosts=1), Group(name="b", instance_type="ml.c5.xlarge", hosts=2))
CASES: list[tuple[dict[str, Any], set[str]]] = [
    ({}, set()),
    ({"spot": True, "max_wait": 90_000}, set()),
    ({"spot": True, "max_wait": 90_000, "checkpoints": None}, {"spot-without-checkpoints"}),
    ({"spot": True, "max_run": 7200, "max_wait": 3600}, {"wait-shorter-than-run"}),
    ({"spot": True, "max_run": 3600, "max_wait": 3600}, set()),
    ({"spot": True, "max_wait": 90_000, "keep_alive": 600}, {"spot-warm-pool"}),
    ({"max_wait": 90_000}, {"wait-without-spot"}),
    ({"keep_alive": 600}, set()),
    ({"keep_alive": 3601}, {"warm-too-long"}),
    ({"keep_alive": 600, "groups": G, "volume_gb": None}, {"warm-groups"}),
    ({"groups": G, "volume_gb": None}, set()),
    ({"groups": (*G, G[0]), "volume_gb": None}, {"groups-alike"}),
    ({"groups": (replace(G[0], instance_type="g5.xlarge"),)}, {"instance-type"}),
    ({"instance_type": "local"}, {"instance-type"}),
    ({"instance_type": "ml.g5.2xlarge"}, {"volume-on-nvme"}),
    ({"instance_type": "ml.p4d.24xlarge"}, {"volume-on-nvme"}),
    ({"instance_type": "ml.p5.48xlarge", "volume_gb": None}, set()),
    ({"instance_type": "ml.m5d.large"}, {"volume-on-nvme"}),
    ({"instance_type": "ml.m5.large"}, set()),
    ({"instance_type": "ml.p3.2xlarge"}, set()),
    ({"volume_gb": 20_000}, {"volume-too-large"}),
    ({"image": ""}, {"image-missing"}),
    ({"image": "moorage:cpu"}, {"image-not-ecr"}),
    ({"image": IMAGE.partition("@")[0] + ":cpu-1"}, {"image-by-tag"}),
    ({"role": ""}, {"role-missing"}),
    ({"hyperparameters": {"lr": "0.1", "max_tokens": "512"}}, set()),
    ({"hyperparameters": {"hf_token": "x"}}, {"secret"}),
    ({"environment": {"WANDB_API_KEY": "x"}}, {"secret"}),
    ({"environment": {"OPTIONS": "password=hunter22"}}, {"secret"}),
    ({"environment": {"TOKENIZERS_PARALLELISM": "false"}}, set()),
    ({"channels": {"train": S3Channel(uri="")}}, {"channel-not-in-s3"}),
    ({"channels": {"train": S3Channel(uri="s3://b/x", groups=("c",))}}, {"channel-group"}),
    ({"channels": {"train": S3Channel(uri="s3://b/x", groups=("a",))}, "groups": G, "volume_gb": None}, set()),
    ({"isolation": True}, set()),
    ({"isolation": True, "channels": {"code": S3Channel(uri="s3://b/x")}}, {"channel-code"}),
    ({"isolation": True, "code": None}, {"isolation-without-code"}),
    ({"isolation": True, "code": None, "program": None}, set()),
    ({"hyperparameters": {f"p{n}": "1" for n in range(98)}}, set()),
    ({"hyperparameters": {f"p{n}": "1" for n in range(99)}}, {"too-many-hyperparameters"}),
    ({"metrics": {f"m{n}": "x" for n in range(41)}}, {"too-many-metrics"}),
    ({"subnets": ("subnet-1",)}, {"vpc-half"}),
    ({"subnets": ("subnet-1",), "security_groups": ("sg-1",)}, set()),
]


@pytest.mark.parametrize(("changes", "codes"), CASES)
def test_the_rules(changes: dict[str, Any], codes: set[str]) -> None:
    found = rules.findings(replace(GOOD, **changes))
    assert {one.code for one in found} == codes
    assert all(one.what and one.fix and one.place for one in found)


def test_there_are_forty_cases_and_each_rule_has_one() -> None:
    import re

    named = set(re.findall(r'code="([a-z0-9-]+)"', Path(rules.__file__).read_text()))
    assert len(CASES) >= 40 and named == set().union(*(codes for _, codes in CASES))
    page = (ROOT / "docs" / "submit.md").read_text(encoding="utf-8")
    assert not [code for code in named if f"| `{code}` |" not in page]


names = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
uris = names.map(lambda name: f"s3://bucket/{name}")
channels = st.dictionaries(
    names,
    st.builds(
        S3Channel, uri=uris, mode=st.sampled_from(["File", "FastFile", "Pipe"]), sharded=st.booleans(),
        content_type=st.sampled_from(["", "text/csv"]),
    ),
    max_size=3,
)  # fmt: skip
submissions = st.builds(
    Submission, name=names, image=st.just(IMAGE), role=st.just(GOOD.role), output=uris, program=st.none() | names,
    code=st.none() | uris, arguments=st.lists(names, max_size=3).map(tuple),
    hyperparameters=st.dictionaries(names, texts, max_size=5), environment=st.dictionaries(
        st.from_regex(r"[A-Z_]{1,20}", fullmatch=True), texts, max_size=4),
    channels=channels, metrics=st.dictionaries(names, st.just("x=(.*)"), max_size=3),
    instance_type=st.sampled_from(["ml.c6i.xlarge", "ml.g5.2xlarge", "ml.p5.48xlarge"]), hosts=st.integers(1, 64),
    groups=st.sampled_from([(), G]), volume_gb=st.none() | st.integers(1, 16_384),
    keep_alive=st.none() | st.integers(0, 3600),
    spot=st.booleans(), max_run=st.integers(1, 432_000), max_wait=st.none() | st.integers(1, 432_000),
    retries=st.integers(0, 30), checkpoints=st.none() | uris, kms_key=st.none() | st.just("alias/key"),
    uncompressed=st.booleans(), isolation=st.booleans(), encrypt_traffic=st.booleans(),
    tags=st.dictionaries(names, names, max_size=3),
)  # fmt: skip


@settings(max_examples=1000 if FULL else 200, suppress_health_check=[HealthCheck.too_slow], derandomize=not FULL)
@given(job=submissions)
def test_every_request_is_valid_by_the_service_model(job: Submission) -> None:
    assert check("CreateTrainingJob", training_job(job)) == ()


# Packing


def test_equal_code_is_an_equal_archive_and_git_says_what_is_code(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / "deep").mkdir(parents=True)
    for name, content in {
        "train.py": "1",
        "deep/x.py": "2",
        ".env": "SECRET=1",
        "big.bin": "3",
        "data.csv": "4",
    }.items():
        (folder / name).write_text(content)
    plain = pack(folder, tmp_path / "a.tar.gz", leave_out=[folder / "data.csv"])
    assert names_in(plain.path) == ["big.bin", "deep/x.py", "train.py"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("*.bin\n.env\n")
    first = pack(folder, tmp_path / "b.tar.gz")
    assert names_in(first.path) == [".gitignore", "data.csv", "deep/x.py", "train.py"]
    os.utime(folder / "train.py", (1, 1))
    again = pack(folder, tmp_path / "c.tar.gz")
    assert (again.digest, again.path.read_bytes()) == (first.digest, first.path.read_bytes())
    (folder / "train.py").write_text("changed")
    assert pack(folder, tmp_path / "d.tar.gz").digest != first.digest


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return sorted(tar.getnames())


def test_nothing_and_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="there is no code"):
        pack(tmp_path, tmp_path / ".x.tar.gz")
    (tmp_path / "a.py").write_bytes(b"x" * 1000)
    monkeypatch.setattr("moorage.cloud.packing.MOST_BYTES", 999)
    with pytest.raises(ConfigError, match=r"the largest file is a\.py"):
        pack(tmp_path, tmp_path / ".x.tar.gz")


# End to end


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.py").write_text("import moorage\nrun = moorage.start()\nrun.report(val_loss=1)\n")
    (tmp_path / "moorage.toml").write_text(
        'program = "train.py"\ninstance_type = "ml.g5.2xlarge"\nmax_wait = "2d"\n'
        '[data]\ntrain = "s3://bucket/digits"\n[hyperparameters]\nlr = 0.1\n'
        f'[submit]\nimage = "{IMAGE}"\nrole = "training"\nbucket = "bucket"\ncheckpoint_name = "digits"\n'
    )
    monkeypatch.chdir(tmp_path)
    nobody(monkeypatch)
    return tmp_path


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, Any]]:
    with bucket_and_sagemaker(monkeypatch, "eu-central-1") as clients:
        yield clients


def test_dry_run_needs_no_credentials(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--dry-run", "-q"]) == 0
    request = json.loads(capsys.readouterr().out)
    assert request["CheckpointConfig"]["S3Uri"] == "s3://bucket/moorage/checkpoints/digits"
    assert request["EnableManagedSpotTraining"] is True and "VolumeSizeInGB" not in request["ResourceConfig"]
    lineage = json.loads(request["Environment"]["MOORAGE_LINEAGE"])
    assert lineage["image"] == IMAGE and lineage["data.train"] == "s3://bucket/digits"
    assert [one["Name"] for one in request["AlgorithmSpecification"]["MetricDefinitions"]] == ["val_loss"]


def test_errors_stop_it_and_can_be_allowed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--dry-run", "-p", "api_key=hidden-value"]) == 78
    told = capsys.readouterr().err
    assert "api_key looks like a secret (secret)" in told and "hidden-value" not in told
    assert main(["submit", "--dry-run", "-p", "api_key=x", "--allow", "secret"]) == 0


def test_the_job_is_created_and_its_code_uploaded_once(
    project: Path, aws: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--json"]) == 0
    first = capsys.readouterr()
    made = json.loads(first.out)
    found = aws["sagemaker"].describe_training_job(TrainingJobName=made["name"])
    assert found["TrainingJobArn"] == made["arn"]
    assert found["RoleArn"] == "arn:aws:iam::123456789012:role/training"
    assert "uploaded 2 files" in first.err
    uri = found["HyperParameters"]["sagemaker_submit_directory"].removeprefix("s3://bucket/")
    body = aws["s3"].get_object(Bucket="bucket", Key=uri)["Body"].read()
    (project / ".got.tar.gz").write_bytes(body)
    assert names_in(project / ".got.tar.gz") == ["moorage.toml", "train.py"]
    assert main(["submit"]) == 0
    again = capsys.readouterr()
    assert "the code is in S3 already" in again.err and again.out.startswith("arn:aws:sagemaker:eu-central-1:")


def test_what_aws_refuses_has_its_remedy(
    project: Path, aws: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "moorage.toml").write_text((project / "moorage.toml").read_text().replace('"bucket"', '"nowhere"'))
    assert main(["submit"]) == 77
    assert "s3://nowhere" in capsys.readouterr().err
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert main(["submit"]) == 77
    assert "there are no AWS credentials" in capsys.readouterr().err


def test_printed_programs_create_the_same_job(
    project: Path, aws: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--dry-run"]) == 0
    meant = json.loads(capsys.readouterr().out)
    assert main(["submit", "--print", "boto3"]) == 0
    exec(compile(capsys.readouterr().out, "printed", "exec"), {})  # noqa: S102 - what the command has just printed
    (name,) = [one["TrainingJobName"] for one in aws["sagemaker"].list_training_jobs()["TrainingJobSummaries"]]
    found = aws["sagemaker"].describe_training_job(TrainingJobName=name)
    for key in ("HyperParameters", "ResourceConfig", "StoppingCondition", "InputDataConfig"):
        assert key in found and found[key] == meant[key], key
    capsys.readouterr()
    assert main(["submit", "--print", "pipeline"]) == 0
    printed = capsys.readouterr().out
    for _ in range(2):  # the second time it is there already
        exec(compile(printed, "printed", "exec"), {})  # noqa: S102 - what the command has just printed
    made = aws["sagemaker"].describe_pipeline(PipelineName="train")
    (step,) = json.loads(made["PipelineDefinition"])["Steps"]
    assert step["Type"] == "Training" and step["Arguments"].keys() == meant.keys() - {"TrainingJobName"}
    assert step["Arguments"]["ResourceConfig"] == meant["ResourceConfig"] and made["RoleArn"] == meant["RoleArn"]
    capsys.readouterr()
    assert main(["submit", "--upload"]) == 0
    uri = capsys.readouterr().out.strip()
    assert uri == meant["HyperParameters"]["sagemaker_submit_directory"]
    assert aws["s3"].head_object(Bucket="bucket", Key=uri.removeprefix("s3://bucket/"))["ContentLength"] > 0
    assert main(["submit", "--print", "cli"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["aws", "sagemaker", "create-training-job"]
    printed = json.loads(words[words.index("--cli-input-json") + 1])
    for key in ("HyperParameters", "ResourceConfig", "RoleArn"):
        assert printed[key] == meant[key]
