"""`moorage status`, `logs`, `stop`, `list`: against moto's server, with a life for the jobs in front of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from aws import called
from moorage.cli import main, watch
from moorage.cloud.described import Described, committed_step
from moorage.cloud.reasons import reason_of
from moorage.cloud.watching import Pace
from moorage.errors import CloudError
from platform_api import NAME, REGION, T0, Platform, job, platform, refusal, say
from support import ROOT, hears_ctrl_c

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    for wait in ("STATUS_SECONDS", "LOG_SECONDS", "STOP_SECONDS"):
        monkeypatch.setattr(watch, wait, (0.02, 0.05))
    with platform() as made:
        called(monkeypatch, made.endpoint, REGION)
        yield made


@pytest.fixture
def s3(told: Platform) -> Any:
    client = boto3.client("s3", endpoint_url=told.endpoint, region_name=REGION)
    client.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    return client


@pytest.fixture
def cloudwatch(told: Platform) -> Any:
    client = boto3.client("logs", endpoint_url=told.endpoint, region_name=REGION)
    client.create_log_group(logGroupName="/aws/sagemaker/TrainingJobs")
    return client


# What a job is, and why it ended


def answered(**more: Any) -> Mapping[str, Any]:
    found = job(**more)
    moment = datetime.fromtimestamp
    for key in ("CreationTime", "TrainingStartTime", "TrainingEndTime"):
        if key in found:
            found[key] = moment(found[key], UTC)
    for one in found["SecondaryStatusTransitions"]:
        one |= {key: moment(one[key], UTC) for key in ("StartTime", "EndTime") if key in one}
    for one in found["FinalMetricDataList"]:
        one["Timestamp"] = moment(one["Timestamp"], UTC)
    return found


def test_a_job_that_trains() -> None:
    text = "\n".join(Described(answer=answered(), now=datetime.fromtimestamp(T0 + 300, UTC)).lines)
    assert text.splitlines()[0] == f"{NAME}: InProgress, Training"
    assert "Interrupted  60.0 s" in text and "Training     40.0 s so far" in text
    assert "2 x ml.g5.2xlarge, Spot" in text and "1 interruption" in text
    assert "0.97, 50.0 s ago" in text


def test_what_was_saved_is_aws_s_own_formula() -> None:
    ended = answered(
        secondary="Completed", status="Completed", TrainingTimeInSeconds=1000, BillableTimeInSeconds=320,
        TrainingEndTime=T0 + 1080,
    )  # fmt: skip
    found = Described(answer=ended, now=datetime.fromtimestamp(T0 + 9999, UTC))
    assert found.savings == pytest.approx(0.68)
    text = "\n".join(found.lines)
    assert "16 min 40 s, billable 5 min 20 s: 68 % saved by Spot" in text
    assert "s3://bucket/output/model.tar.gz" in text


@pytest.mark.parametrize(
    ("text", "secondary", "word"),
    [
        ("CapacityError: Unable to provision requested ML compute capacity.", "Failed", "no such instances"),
        ("ResourceLimitExceeded: The account-level service limit ... is 0", "Failed", "quota"),
        ("ClientError: No S3 objects found under S3 URL s3://a/b", "Failed", "names nothing"),
        ("ClientError: Data download failed: AccessDenied (403)", "Failed", "role may not"),
        ("ClientError: Artifact upload failed: Error 7", "Failed", "could not be put"),
        ("InternalServerError: We encountered an internal error. Please try again.", "Failed", "AWS broke"),
        ("AlgorithmError: rank 1 on algo-2 failed: ValueError: x, exit code: 1", "Failed", "ended with 1"),
        ("AlgorithmError: ... AccessDenied, exit code: 78", "Failed", "ended with 78"),
        ("", "MaxWaitTimeExceeded", "--max-wait"),
        ("", "MaxRuntimeExceeded", "--max-run"),
        ("something nobody knows", "Failed", "platform's own words"),
    ],
)
def test_every_reason_has_its_remedy_and_its_section(text: str, secondary: str, word: str) -> None:
    found = reason_of(text, secondary)
    assert found is not None and word in found.means + found.fix
    titles = {line.lstrip("# ").lower().replace(" ", "-") for line in PAGE.splitlines() if line.startswith("##")}
    assert found.section in titles
    if found.section in {"what-the-platform-says", "stop"}:
        assert found.text.split(":")[0] in PAGE, "the page has its words"


def test_of_a_program_that_ended_the_exit_code_says_which_section() -> None:
    sections = {code: reason_of(f"AlgorithmError: x, exit code: {code}", "Failed").section for code in (78, 74, 137, 1)}
    assert sections == {78: "configuration", 74: "checkpoints", 137: "stop", 1: "a-rank-failed"}
    assert reason_of("", "Training") is None


def test_a_checkpoint_is_one_once_its_manifest_is_there() -> None:
    assert committed_step("a/b/step-00000120/manifest.json") == 120
    assert committed_step("step-00000007/") == 7
    assert committed_step("a/step-00000120/__0_0.distcp") is None
    assert committed_step("a/nostep-1/") is None


# status


def test_status_has_the_newest_committed_checkpoint(
    told: Platform, s3: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("step-00000040/manifest.json", "step-00000120/manifest.json", "step-00000160/__0_0.distcp"):
        s3.put_object(Bucket="bucket", Key=f"checkpoints/digits/{key}", Body=b"{}")
    told.script("SageMaker.DescribeTrainingJob", job())
    assert main(["status", NAME]) == 0
    assert "step 120, saved " in capsys.readouterr().out
    assert main(["status", f"arn:aws:sagemaker:{REGION}:1:training-job/{NAME}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoint"]["step"] == 120 and 0 <= found["checkpoint"]["age_seconds"] < 60
    assert found["interruptions"] == 1 and found["metrics"] == {"val_accuracy": 0.97}


def test_who_may_not_look_at_the_checkpoints_sees_the_rest(told: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    told.script("SageMaker.DescribeTrainingJob", job())
    assert main(["status", NAME]) == 0
    out, err = capsys.readouterr()
    assert "warning: cannot look at the checkpoints in s3://bucket/checkpoints/digits" in err
    assert "2 x ml.g5.2xlarge" in out


def test_watched_it_tells_each_change_and_ends_with_the_job(
    told: Platform, s3: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = job("Failed", status="Failed", FailureReason="AlgorithmError: no data, exit code: 66")
    told.script("SageMaker.DescribeTrainingJob", job("Starting"), job("Starting"), job(), job(), failed)
    assert main(["status", "--watch", NAME]) == 1
    out, err = capsys.readouterr()
    assert err.count("InProgress, Starting") == 1 and err.count("InProgress, Training: it is Training") == 1
    assert "AlgorithmError: no data" in out and "docs/troubleshooting.md#program" in out


def test_a_refusal_that_passes_is_waited_for(told: Platform, s3: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told.script(
        "SageMaker.DescribeTrainingJob", job(), refusal("ThrottlingException", "Rate exceeded"),
        job("Stopped", status="Stopped"),
    )  # fmt: skip
    assert main(["status", "-w", NAME]) == 3
    assert "AWS takes no more requests for now" in capsys.readouterr().err


def test_credentials_that_expire_meanwhile_leave_the_job(told: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    told.script(
        "SageMaker.DescribeTrainingJob", job(), refusal("ExpiredTokenException", "The security token has expired")
    )
    assert main(["status", "-w", NAME]) == 77
    err = capsys.readouterr().err
    assert "sign in again" in err and "The job goes on meanwhile" in err


def test_the_pace_slows_down_and_gives_up_in_the_end() -> None:
    now, slept = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    pace = Pace(1.0, 10.0, sleep=sleep, clock=lambda: now)
    for _ in range(10):
        pace.idle()
        pace.wait()
    assert slept[0] < 2 and all(8 <= seconds <= 12 for seconds in slept[-3:])
    pace.moved()
    pace.wait()
    assert slept[-1] < 1.3
    with pytest.raises(CloudError, match="gone"):
        while now < 5000:
            pace.refused(CloudError("gone"))
            pace.wait()
    assert 600 < now < 800 and max(slept) <= 48


def test_no_such_job_no_permission(told: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "logs"):
        assert main([command, "nothing"]) == 77
        err = capsys.readouterr().err
        assert f"there is no training job nothing in {REGION}" in err and "moorage list" in err
    arn = f"arn:aws:sagemaker:{REGION}:123456789012:training-job/{NAME}"
    told.script("SageMaker.StopTrainingJob", refusal(
        "AccessDeniedException",
        f"User: arn:aws:iam::1:user/a is not authorized to perform: sagemaker:StopTrainingJob on resource: {arn}",
    ))  # fmt: skip
    told.script("SageMaker.DescribeTrainingJob", job())
    assert main(["stop", NAME]) == 77
    assert f"allow sagemaker:StopTrainingJob on {arn}" in capsys.readouterr().err
    assert main(["status", "/"]) == 78


# logs


def test_lines_of_all_hosts_by_their_times(told: Platform, cloudwatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told.script("SageMaker.DescribeTrainingJob", job())
    assert main(["logs", NAME]) == 0
    assert "nothing is there yet: the job is at Training" in capsys.readouterr().err
    say(cloudwatch, "algo-1-1", (1, "one"), (50, "three"))
    say(cloudwatch, "algo-2-1", (2, "two"), (51, "four"))
    assert main(["logs", NAME]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "algo-1 | one", "algo-2 | two", "algo-1 | three", "algo-2 | four",
    ]  # fmt: skip
    assert main(["logs", NAME, "--host", "algo-2", "--tail", "1"]) == 0
    assert capsys.readouterr().out == "algo-2 | four\n"
    assert main(["logs", NAME, "--tail", "3"]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert main(["logs", NAME, "--since", "soon"]) == 78
    assert main(["logs", NAME, "--since", "80s", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["host"], line["text"]) for line in lines] == [("algo-1", "three"), ("algo-2", "four")]


def test_many_lines_come_in_pages(told: Platform, cloudwatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"InstanceType": "ml.m5.large", "InstanceCount": 1}
    told.script("SageMaker.DescribeTrainingJob", job(ResourceConfig=one))
    for part in range(3):
        say(cloudwatch, "algo-1-1", *((20 * part + n / 1000, f"line {9000 * part + n}") for n in range(9000)))
    assert main(["logs", NAME]) == 0
    assert capsys.readouterr().out.splitlines() == [f"line {n}" for n in range(27000)]


def test_followed_to_the_end_of_the_job_and_through_an_interruption(told: Platform, cloudwatch: Any) -> None:
    told.script("SageMaker.DescribeTrainingJob", job())
    say(cloudwatch, "algo-1-1", (1, "before"))
    command = [sys.executable, "-m", "moorage.cli", "logs", "-f", NAME]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "algo-1 | before\n"
        say(cloudwatch, "algo-1-2", (2, "in another stream"))
        assert process.stdout.readline() == "algo-1 | in another stream\n"
        say(cloudwatch, "algo-1-2", (3, "the last"))
        told.script("SageMaker.DescribeTrainingJob", job("Completed", status="Completed"))
        assert process.stdout.readline() == "algo-1 | the last\n"
        assert process.stdout.read() == "" and process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_leaves_the_job(told: Platform) -> None:
    told.script("SageMaker.DescribeTrainingJob", job())
    command = hears_ctrl_c("status", "-w", NAME)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert "InProgress" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130 and "the job goes on" in err and "Traceback" not in err
    assert told.asked["SageMaker.StopTrainingJob"] == 0


# stop, list


def test_stop_waits_until_it_is_over(told: Platform, s3: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told.script("SageMaker.DescribeTrainingJob", job())

    def stopped(_: Mapping[str, Any]) -> Mapping[str, Any]:
        told.script(
            "SageMaker.DescribeTrainingJob", job("Stopping", status="Stopping"), job("Stopped", status="Stopped")
        )
        return {}

    told.answers["SageMaker.StopTrainingJob"] = stopped
    assert main(["stop", NAME, "--wait"]) == 0
    out, err = capsys.readouterr()
    assert "its state is kept in s3://bucket/checkpoints/digits" in err and out.startswith(f"{NAME}: Stopped")
    assert main(["stop", NAME]) == 0
    assert "it is over already: Stopped" in capsys.readouterr().err
    assert told.asked["SageMaker.StopTrainingJob"] == 1


def test_list(told: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out == "there are no such jobs\n"
    sagemaker = boto3.client("sagemaker", endpoint_url=told.endpoint, region_name=REGION)
    for name in ("digits-1", "digits-2", "other-1"):
        sagemaker.create_training_job(
            TrainingJobName=name, RoleArn="arn:aws:iam::123456789012:role/training",
            AlgorithmSpecification={"TrainingInputMode": "File", "TrainingImage": "image"},
            OutputDataConfig={"S3OutputPath": "s3://bucket/"}, StoppingCondition={"MaxRuntimeInSeconds": 60},
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        )  # fmt: skip
    assert main(["list", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in found} == {"digits-1", "digits-2"} and found[0]["status"] == "Completed"
    assert main(["list", "-n", "1"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    asked = [body for operation, body in told.bodies if operation == "SageMaker.ListTrainingJobs"]
    assert asked[-1]["SortBy"] == "CreationTime" and asked[-1]["SortOrder"] == "Descending"
