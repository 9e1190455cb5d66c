"""`moorage report` and `compare` of jobs of SageMaker, by their names: against moto's server over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from aws import called
from moorage.cli import main
from platform_api import NAME, REGION, T0, Platform, job, platform, refusal, say

SPOT, OTHER = NAME, "digits-2026-01-31-14-00-00-456"
LATER = 5000.0
"""Seconds after the first job that the other began."""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Platform]:
    monkeypatch.chdir(tmp_path)
    with platform() as made:
        called(monkeypatch, made.endpoint, REGION)
        yield made


@pytest.fixture
def two(told: Platform) -> Platform:
    """One job on Spot, then one on demand, with checkpoints at the same place; both have said something."""
    ended = {"TrainingTimeInSeconds": 1000, "HyperParameters": {"lr": '"0.1"', "sagemaker_program": '"train.py"'}}
    first = job("Completed", status="Completed", BillableTimeInSeconds=360, TrainingEndTime=T0 + 1080, **ended)
    second = job(
        "Completed", status="Completed", BillableTimeInSeconds=900, TrainingEndTime=T0 + LATER + 1000,
        TrainingJobName=OTHER, TrainingJobArn=first["TrainingJobArn"].replace(SPOT, OTHER), CreationTime=T0 + LATER,
        EnableManagedSpotTraining=False, SecondaryStatusTransitions=[], **ended,
    )  # fmt: skip
    by_name = {SPOT: first, OTHER: second}
    told.answers["SageMaker.DescribeTrainingJob"] = lambda body: by_name[body["TrainingJobName"]]
    s3 = boto3.client("s3", endpoint_url=told.endpoint, region_name=REGION)
    s3.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    for began, launch, lr, useful in ((T0 + 80, 1, "0.1", 6.0), (T0 + LATER + 80, 2, "0.3", 8.0)):
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began))
        put(s3, f"ledger/{stamp}-0-algo-1.jsonl", ledger(began, launch=launch, lr=lr, useful=useful))
    put(s3, "ledger/notes.txt", "not a ledger")
    put(s3, "step-00000010/manifest.json", "{}")
    cloudwatch = boto3.client("logs", endpoint_url=told.endpoint, region_name=REGION)
    cloudwatch.create_log_group(logGroupName="/aws/sagemaker/TrainingJobs")
    say(cloudwatch, "algo-1-1", (1, "#metric step=1 epoch=0 train_loss=0.5"), (2, "hello"))
    say(cloudwatch, "algo-1-2", (9, "#metric step=10 epoch=0 train_loss=0.25"))
    say(cloudwatch, "algo-1-1", (1, "#metric step=10 epoch=0 train_loss=0.75"), name=OTHER)
    return told


def put(s3: Any, key: str, text: str) -> None:
    s3.put_object(Bucket="bucket", Key=f"checkpoints/digits/{key}", Body=text.encode())


def ledger(began: float, *, launch: int, lr: str, useful: float) -> str:
    """Of 10 seconds in all."""
    given = {"lr": lr, "hosts": "2", "instance_type": "ml.g5.2xlarge"}
    events: list[tuple[float, str, Mapping[str, Any]]] = [
        (0, "start", {"host": "algo-1", "launch": launch, "attempt": 0, "world_size": 2, "given": given}),
        (1, "training", {"step": 0}),
        (1 + useful, "progress", {"step": 10}),
        (10, "down", {"step": 10, "codes": [0], "at": began + 1 + useful}),
        (10, "leave", {"code": 0}),
    ]
    return "\n".join(json.dumps({"event": kind, "time": began + at, **fields}) for at, kind, fields in events)


def priced(body: Mapping[str, Any]) -> Mapping[str, Any]:
    wanted = {one["Field"]: one["Value"] for one in body["Filters"]}
    assert wanted["instanceName"] == "ml.g5.2xlarge" and wanted["regionCode"] == REGION
    product = {"terms": {"OnDemand": {"a": {"priceDimensions": {"b": {"unit": "Hrs", "pricePerUnit": {"USD": "2"}}}}}}}
    return {"PriceList": [json.dumps(product)]}


def test_two_jobs_beside_each_other(two: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    two.answers["AWSPriceListService.GetProducts"] = priced
    arn = f"arn:aws:sagemaker:{REGION}:123456789012:training-job/{OTHER}"
    assert main(["compare", SPOT, arn, "--json", "--fetch-prices"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings_that_differ"] == {"spot": ["yes", "no"], "lr": ["0.1", "0.3"]}
    first, second = found["jobs"]
    assert first["metrics"]["train_loss"]["by_step"] == [[1, 0.5], [10, 0.25]]
    assert second["metrics"]["train_loss"]["by_step"] == [[10, 0.75]], "not those of the other job"
    assert [job["goodput"]["goodput"] for job in (first, second)] == [0.6, 0.8]
    assert [len(job["attempts"]) for job in (first, second)] == [1, 1], "each ledger has its own attempts"
    # BillableTimeInSeconds x InstanceCount x the price on demand
    assert first["bill"] == {"seconds": 360, "instances": 2, "per_hour": 4, "cost": pytest.approx(0.4)}
    assert second["bill"]["cost"] == pytest.approx(1.0)
    assert (first["status"], first["interruptions"], first["folder"]) == ("Completed", 1, None)
    assert not list(Path.cwd().iterdir()), "nothing is left"


def test_the_page_and_the_table(two: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", SPOT, OTHER, "--on-demand-price", "2", "--spot-price", "1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cost", "$0.4000", "$1.00"] in lines and ["goodput", "60.0", "%", "80.0", "%"] in lines
    assert ["train_loss", "0.25", "0.75"] in lines
    assert SPOT in Path("compare.html").read_text() and "$0.4000" in Path("compare.html").read_text()


def test_a_report(two: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    two.answers["AWSPriceListService.GetProducts"] = priced
    assert main(["report", SPOT, "--fetch-prices"]) == 0
    out = capsys.readouterr().out
    assert f"{SPOT}: Completed, after 1 attempt" in out and "$0.4000, at $4.00 an hour for all" in out
    page = Path("report.html").read_text()
    assert "train_loss" in page and "Interrupted" in page


def test_beside_a_rehearsal(two: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    here = Path("runs", "here", "checkpoints", "ledger")
    here.mkdir(parents=True)
    (here / "1-0-algo-1.jsonl").write_text(ledger(T0, launch=1, lr="0.1", useful=5.0))
    assert main(["compare", "here", SPOT, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [job["name"] for job in found["jobs"]] == ["here", SPOT]
    assert "lr" not in found["settings_that_differ"]


def test_what_may_not_be_seen_is_left_out(told: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    failed = job("Failed", status="Failed", FailureReason="AlgorithmError: no data", BillableTimeInSeconds=60)
    failed["HyperParameters"] = {"lr": '"0.1"', "api_key": "hidden-from-all"}
    told.script("SageMaker.DescribeTrainingJob", failed)
    told.script("Logs_20140328.FilterLogEvents", refusal("AccessDeniedException", "not authorized"))
    told.script("AWSPriceListService.GetProducts", refusal("AccessDeniedException", "not authorized"))
    assert main(["report", NAME, "--json", "--fetch-prices"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["failure"] == "AlgorithmError: no data" and found["interruptions"] == 1
    assert found["given"]["lr"] == "0.1" and found["given"]["api_key"] == "********"
    assert "cannot read the ledger in s3://bucket/checkpoints/digits" in err
    assert "allow logs:FilterLogEvents" in err and "allow pricing:GetProducts" in err
    assert found["bill"]["cost"] is None and "hidden-from-all" not in out + err


def test_what_is_neither_a_folder_nor_a_job(told: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    told.script("SageMaker.DescribeTrainingJob", refusal("ValidationException", "Requested resource not found."))
    assert main(["report", "nothing"]) == 77
    err = capsys.readouterr().err
    assert "there is no folder nothing, and there is no training job nothing" in err and "name the job's folder" in err
    asked = told.asked["SageMaker.DescribeTrainingJob"]
    assert main(["report", "runs/nothing"]) == 78
    assert "there is no folder runs/nothing" in capsys.readouterr().err
    assert told.asked["SageMaker.DescribeTrainingJob"] == asked, "no job has such a name"


def test_a_job_named_twice(two: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    arn = f"arn:aws:sagemaker:{REGION}:123456789012:training-job/{SPOT}"
    assert main(["compare", SPOT, arn]) == 78
    assert "is named twice" in capsys.readouterr().err
