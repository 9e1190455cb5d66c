"""Checkpoints of one rank in S3: saved, kept, noticed when damaged, and never given up for a service that is away."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
import torch
from torch import Tensor

from aws import aws_server
from moorage.checkpoint.checkpointer import Checkpointer, Outcome, SaveInfo
from moorage.checkpoint.inspect import State, inspect
from moorage.checkpoint.layout import BEST, MANIFEST, METADATA
from moorage.checkpoint.manifest import Manifest
from moorage.checkpoint.s3.bucket import Bucket, Tuning
from moorage.checkpoint.s3.failures import S3Error
from moorage.checkpoint.s3.storage import S3
from moorage.contract.s3 import Address
from moorage.errors import CheckpointError
from s3_faults import OWNER, Fault, Faults, faulty

KEYS = {"region_name": "eu-west-1", "aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
PREFIX = "jobs/one"
PART = 5 << 20


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(endpoint: str) -> Iterator[Any]:
    """A client that knows no faults."""
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    client = boto3.client("s3", endpoint_url=endpoint, **KEYS)
    client.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    yield client
    client.close()


@pytest.fixture
def faults(endpoint: str, s3: Any) -> Iterator[Faults]:
    faults = Faults(os.environ.get("CHAOS_SEED", time.time_ns()))
    with faulty(endpoint, faults):
        yield faults


@functools.lru_cache(maxsize=4)
def storage(endpoint: str, patience: float = 20.0) -> S3:
    tuning = Tuning(part_size=PART, parallel=2, timeout=1.0, patience=patience, pace=0.02)
    options = {"endpoint_url": endpoint, **KEYS}
    return S3(Bucket(Address(bucket="bucket", prefix=PREFIX), options, owner=OWNER, tuning=tuning))


Open = Callable[..., Checkpointer]


@pytest.fixture
def start(endpoint: str, s3: Any) -> Iterator[Open]:
    """A start of the job; with faults on its way to S3, where they are given."""
    opened: list[Checkpointer] = []

    def opener(faults: Faults | None = None, *, patience: float = 20.0) -> Checkpointer:
        there = storage(faults.endpoint if faults else endpoint, patience)
        one = Checkpointer(there, rank=0, world_size=1, local_rank=0, host="algo-1", keep=2, attempt=1)
        opened.append(one)
        return one

    yield opener
    for one in opened:
        one.close()


def tensors(step: int, size: int = 1000) -> dict[str, Tensor]:
    return {"model/w": torch.full((size, 4), float(step)), "model/b": torch.arange(7) + step}


def attempt(one: Checkpointer, step: int, size: int = 1000, *, best: bool = False) -> Outcome:
    assert one.save(tensors(step, size), info=SaveInfo(step=step), objects={"s": step}, best=best)
    outcome = one.wait()
    assert outcome is not None and outcome.step == step
    return outcome


def save(one: Checkpointer, *steps: int, size: int = 1000, best: bool = False) -> None:
    for step in steps:
        outcome = attempt(one, step, size, best=best)
        assert outcome.committed, outcome


def loads(one: Checkpointer, manifest: Manifest, size: int = 1000) -> bool:
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors(0, size).items()}
    one.load(manifest, into)
    return all(torch.equal(into[name], tensor) for name, tensor in tensors(manifest.step, size).items())


def keys(s3: Any) -> list[str]:
    found = s3.list_objects_v2(Bucket="bucket").get("Contents", ())
    return [item["Key"].removeprefix(f"{PREFIX}/") for item in found]


def folders(s3: Any) -> list[str]:
    return sorted({key.partition("/")[0] for key in keys(s3)})


def unfinished(s3: Any) -> list[Any]:
    return s3.list_multipart_uploads(Bucket="bucket").get("Uploads", [])


def change(s3: Any, key: str, how: Callable[[bytes], bytes]) -> None:
    data = s3.get_object(Bucket="bucket", Key=f"{PREFIX}/{key}")["Body"].read()
    s3.put_object(Bucket="bucket", Key=f"{PREFIX}/{key}", Body=how(data))


def shard(s3: Any, step: int) -> str:
    return next(key for key in keys(s3) if key.startswith(f"step-{step:08d}") and key.endswith(".distcp"))


def test_what_is_saved_is_loaded_by_the_next_start(start: Open, s3: Any) -> None:
    one = start()
    assert one.newest() is None
    size = 800_000
    save(one, 10, size=size)
    assert one.save(tensors(10), info=SaveInfo(step=10), objects={}) is False, "a step is never overwritten"
    other = start()
    found = other.newest()
    assert found is not None and loads(other, found, size)
    assert sorted(keys(s3)) == sorted(f"step-00000010/{name}" for name in [*found.files, MANIFEST])
    assert found.size > 2 * PART and not unfinished(s3)


def test_the_last_ones_and_the_best_stay(start: Open, s3: Any) -> None:
    one = start()
    one.newest()
    save(one, 10)
    save(one, 20, best=True)
    save(one, 30, 40, 50)
    assert folders(s3) == ["step-00000020", "step-00000040", "step-00000050"]
    one.mark_best(50)
    save(one, 60)
    assert folders(s3) == ["step-00000050", "step-00000060"]
    assert f"step-00000050/{BEST}" in keys(s3)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda s3: change(s3, shard(s3, 20), lambda data: data[:-1]), "bytes instead of"),
        (lambda s3: change(s3, shard(s3, 20), lambda data: data[:-1] + b"?"), "its content has changed"),
        (lambda s3: change(s3, f"step-00000020/{METADATA}", lambda data: b"x" * len(data)), "its content has changed"),
        (lambda s3: change(s3, f"step-00000020/{MANIFEST}", lambda data: data[1:]), "the manifest"),
        (lambda s3: s3.delete_object(Bucket="bucket", Key=f"{PREFIX}/{shard(s3, 20)}"), "missing"),
        (lambda s3: change(s3, shard(s3, 20), lambda _: s3.get_object(
            Bucket="bucket", Key=f"{PREFIX}/{shard(s3, 10)}")["Body"].read()), "its content has changed"),
    ],
    ids=["short", "flipped", "metadata", "manifest", "gone", "swapped"],
)  # fmt: skip
def test_a_damaged_one_is_noticed_and_put_aside(
    start: Open, s3: Any, caplog: pytest.LogCaptureFixture, damage: Callable[[Any], None], reason: str
) -> None:
    one = start()
    save(one, 10, 20)
    damage(s3)
    caplog.clear()
    other = start()
    found = other.newest()
    assert found is not None and found.step == 10 and loads(other, found)
    assert reason in caplog.text
    assert folders(s3) == ["damaged-00000020-1", "step-00000010", "step-00000020"]


def test_what_is_put_aside_stays_until_its_step_has_passed(start: Open, s3: Any) -> None:
    save(start(), 10, 20)
    change(s3, shard(s3, 20), lambda data: data[1:])
    assert start().newest().step == 10
    # Its files wait to be looked at, until training has passed their step again.
    third = start()
    assert third.newest().step == 10 and len(folders(s3)) == 3
    save(third, 20, 30)
    assert folders(s3) == ["step-00000020", "step-00000030"]
    newest = start()
    for step in (30, 20):
        manifest = newest.at(step)
        assert manifest is not None and loads(newest, manifest)
    assert {key for key in keys(s3) if "20/" in key} == {
        f"step-00000020/{name}" for name in [*newest.at(20).files, MANIFEST]
    }


def test_what_a_killed_save_left_is_removed(start: Open, s3: Any, caplog: pytest.LogCaptureFixture) -> None:
    save(start(), 10)
    s3.put_object(Bucket="bucket", Key=f"{PREFIX}/step-00000020/a-00000.distcp", Body=b"half")
    s3.create_multipart_upload(Bucket="bucket", Key=f"{PREFIX}/step-00000020/a-00001.distcp")
    s3.create_multipart_upload(Bucket="bucket", Key="jobs/one-more/step-00000020/a-00001.distcp")
    one = start()
    assert one.newest().step == 10
    assert folders(s3) == ["step-00000010"]
    assert [item["Key"] for item in unfinished(s3)] == ["jobs/one-more/step-00000020/a-00001.distcp"]
    assert "left over from a save that did not end" in caplog.text


@pytest.mark.parametrize("denied", [r"PUT .*distcp", r"PUT .*\.metadata", r"PUT .*manifest"])
def test_a_save_that_fails_leaves_nothing(start: Open, faults: Faults, s3: Any, denied: str) -> None:
    one = start(faults)
    save(one, 10)
    faults.denied = denied
    outcome = attempt(one, 20, size=800_000)
    assert not outcome.committed
    assert "allow the job's role s3:PutObject on arn:aws:s3:::bucket/jobs/one/*" in outcome.error
    faults.denied = ""
    assert folders(s3) == ["step-00000010"] and not unfinished(s3)
    save(one, 30)


def test_training_goes_on_while_s3_is_away(start: Open, faults: Faults, s3: Any) -> None:
    one = start(faults, patience=0.3)
    one.newest()
    save(one, 10)
    faults.rate, faults.kinds = 1.0, [Fault.SLOW_DOWN]
    outcome = attempt(one, 20)
    assert not outcome.committed and "SlowDown" in outcome.error
    faults.rate = 0.0
    save(one, 30)
    manifest = start(faults).newest()
    assert manifest is not None and manifest.step == 30


def test_no_checkpoint_is_given_up_because_s3_is_away(start: Open, faults: Faults, s3: Any) -> None:
    save(start(faults), 10, 20)
    before = keys(s3)
    one = start(faults, patience=0.3)
    for denied in (r"GET .*distcp", r"GET .*manifest", r"GET .*list-type", r"HEAD .*metadata"):
        faults.denied = denied
        with pytest.raises(S3Error, match="access denied"):
            one.newest()
    faults.denied, faults.rate, faults.kinds = "", 1.0, [Fault.INTERNAL_ERROR]
    with pytest.raises(CheckpointError, match="InternalError"):
        one.newest()
    faults.rate = 0.0
    assert keys(s3) == before
    assert one.newest().step == 20


@pytest.mark.parametrize(
    ("denied", "permission"),
    [
        ("PUT", "s3:PutObject"),
        ("GET .*probe", "s3:GetObject"),
        ("POST .*delete", "s3:DeleteObject"),
        ("GET .*list-type", "s3:ListBucket"),
    ],
)
def test_a_missing_permission_ends_the_job_at_its_start(
    start: Open, faults: Faults, denied: str, permission: str
) -> None:
    faults.denied = denied
    with pytest.raises(S3Error, match=f"allow the job's role {permission} on arn:aws:s3:::bucket"):
        start(faults)


def test_of_many_left_over_parts_those_that_may_not_be_listed_are_told(
    start: Open, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    faults.denied = "GET .*uploads"
    start(faults)
    assert "s3:ListBucketMultipartUploads" in caplog.text


@pytest.mark.full(20, short=1)
def test_jobs_on_bad_days_lose_nothing(start: Open, faults: Faults, s3: Any, chaos_count: int) -> None:
    """Saves, prunes and resumes, with every third request or so going wrong."""
    size, step = 500_000, 0
    for _ in range(chaos_count):
        one = start(faults)
        faults.rate = 0.3
        manifest = one.newest()
        assert (manifest.step if manifest else 0) == step
        assert manifest is None or loads(one, manifest, size)
        save(one, step + 10, step + 20, size=size)
        step += 20
        faults.rate = 0.0
        assert folders(s3) == [f"step-{step - 10:08d}", f"step-{step:08d}"]
        assert not unfinished(s3)
    print(f"{chaos_count} of {chaos_count} starts: every checkpoint whole, none lost; {faults.counts.total()} faults:")
    for fault, times in faults.counts.items():
        print(f"  {times} times {fault}")
    assert faults.counts.total() > 5 * chaos_count


def test_they_are_inspected(start: Open, endpoint: str, s3: Any) -> None:
    save(start(), 10, 20)
    change(s3, shard(s3, 10), lambda data: data[:-1] + b"?")
    s3.put_object(Bucket="bucket", Key=f"{PREFIX}/step-00000030/a-00000.distcp", Body=b"half")
    report = inspect(storage(endpoint))
    assert [(found.step, found.state) for found in report.checkpoints] == [
        (30, State.INCOMPLETE), (20, State.WHOLE), (10, State.DAMAGED)
    ]  # fmt: skip
    assert report.exit_code() == 1
    [found] = inspect(storage(endpoint), only=20, quick=True).checkpoints
    assert found.state is State.WHOLE and found.files == 3


def test_threads_of_a_transfer_end_with_it(start: Open) -> None:
    one = start()
    save(one, 10, size=800_000)
    assert not [thread for thread in threading.enumerate() if thread.name == "s3"]
    assert logging.getLogger("moorage").level == logging.NOTSET
