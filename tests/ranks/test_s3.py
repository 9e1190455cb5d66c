"""Whole jobs whose checkpoints lie in S3 alone: killed in a save, stopped, and gone on with to the same weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from aws import aws_server
from moorage.contract.ledger import FOLDER
from moorage.errors import CheckpointError
from ranks.chaos import DEADLINE, ChaosJob, await_random_moment, dice, is_over, left_alone, rank_pids, reports
from s3_faults import OWNER, Fault, Faults, faulty
from support import wait_until


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server() as endpoint:
        yield endpoint


@pytest.fixture
def faults(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """A bucket, which jobs reach through the proxy. No answer stalls: each would take 20 s, and a job saves often here;
    tests/unit has those."""
    faults = Faults(0, kinds=set(Fault) - {Fault.STALLED_ANSWER})
    with faulty(endpoint, faults):
        given = {"ENDPOINT_URL": faults.endpoint, "REGION": "eu-west-1", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y"}
        for name, value in given.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield faults


@pytest.fixture
def s3(endpoint: str, faults: Faults) -> Iterator[Any]:
    client = boto3.client("s3", endpoint_url=endpoint, region_name="eu-west-1")
    client.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    yield client
    for item in client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        client.delete_object(Bucket="bucket", Key=item["Key"])
    client.delete_bucket(Bucket="bucket")
    client.close()


def settings(number: int) -> dict[str, str]:
    return {"checkpoint_s3": f"s3://bucket/jobs/{number}", "checkpoint_s3_owner": OWNER}


def committed(s3: Any, number: int) -> list[int]:
    found = s3.list_objects_v2(Bucket="bucket", Prefix=f"jobs/{number}/step-").get("Contents", ())
    return [int(item["Key"].split("/")[2][5:]) for item in found if item["Key"].endswith("/manifest.json")]


def check_only_in_s3(job: ChaosJob, s3: Any, number: int) -> None:
    assert len(committed(s3, number)) == 2
    assert not s3.list_multipart_uploads(Bucket="bucket").get("Uploads")
    for folder in job.folders:
        assert [path.name for path in folder.checkpoints.iterdir()] == [FOLDER], "a copy on a disk"


POINTS = (r"PUT .*\.distcp", r"PUT .*/\.metadata", "PUT .*/manifest", "POST .*delete")


@pytest.mark.full(20, short=1)
def test_killed_in_a_save_it_goes_on_from_s3(tmp_path: Path, faults: Faults, s3: Any, chaos_count: int) -> None:
    die = dice("s3-kill")
    alone = left_alone(strategy="ddp")  # its two ranks are on one host: where they are changes no bit
    for number in range(chaos_count):
        point = POINTS[number % len(POINTS)] if chaos_count > 1 else die.choice(POINTS)
        job = ChaosJob(tmp_path / str(number), hosts=2, ranks=1)
        with job.start(**settings(number), checkpoint_steps=die.choice([5, 9]), max_restarts=1) as hosts:
            wait_until(lambda: is_over(hosts) or committed(s3, number), timeout=DEADLINE, what="a checkpoint")  # noqa: B023
            faults.hold(point)
            wait_until(lambda: is_over(hosts) or faults.reached.is_set(), timeout=DEADLINE, what=point)
            kept = max(committed(s3, number))
            os.kill(rank_pids(hosts)[die.randrange(2)], signal.SIGKILL)
            # What was on its way when the rank was killed still comes to S3.
            faults.released.set()
            assert [host.ends(DEADLINE) for host in hosts] == [0, 0], reports(hosts)
        [resumed] = job.events("resume")
        assert resumed["step"] >= kept, (point, kept, resumed)
        job.check_equal(alone)
        check_only_in_s3(job, s3, number)
    print(f"{chaos_count} of {chaos_count} jobs with a rank killed in a save to S3: bit-equal")


@pytest.mark.full(10, short=1)
def test_stopped_it_saves_to_s3_and_goes_on(tmp_path: Path, faults: Faults, s3: Any, chaos_count: int) -> None:
    die = dice("s3-stop")
    alone = left_alone(strategy="ddp")
    for number in range(chaos_count):
        faults.rate = 0.1
        job = ChaosJob(tmp_path / str(number), hosts=2, ranks=1)
        with job.start(**settings(number), checkpoint_steps=die.choice([0, 4, 11])) as hosts:
            assert await_random_moment(job, hosts, die, steps=range(1, job.steps - 20)), reports(hosts)
            die.choice(hosts).signal()
            assert [host.ends(DEADLINE) for host in hosts] == [143, 143], reports(hosts)
        assert [host.failure for host in hosts] == [None, None]
        stopped = job.events("stopped")[-1]["step"]
        assert committed(s3, number)[-1] == stopped
        job.finishes(**settings(number), checkpoint_steps=50)
        job.check_nothing_lost()
        job.check_equal(alone)
        check_only_in_s3(job, s3, number)
    print(f"{chaos_count} of {chaos_count} jobs stopped, saved to S3, started again: bit-equal, 0 steps lost; "
          f"{faults.counts.total()} faults on the way")  # fmt: skip


def test_a_bucket_of_another_account_ends_the_job_at_its_start(tmp_path: Path, faults: Faults, s3: Any) -> None:
    job = ChaosJob(tmp_path, hosts=1, ranks=2)
    with job.start(checkpoint_s3="s3://bucket/jobs/0", checkpoint_s3_owner="999999999999") as [host]:
        assert host.ends(DEADLINE) == CheckpointError.exit_code, host.report()
    assert host.failure is not None
    assert "s3:ListBucket on arn:aws:s3:::bucket" in host.failure
    assert "or the bucket is not that of account 999999999999" in host.failure
    assert job.peak() == 0
