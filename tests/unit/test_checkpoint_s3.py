"""Objects in S3: a server that speaks S3 over HTTP, and a way to it on which things go wrong."""

from __future__ import annotations

import os
import random
import re
import socket
import threading
import time
import tracemalloc
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
import xxhash

from aws import aws_server
from moorage.checkpoint.durable import FileFacts
from moorage.checkpoint.s3.bucket import Bucket, Tuning
from moorage.checkpoint.s3.download import _READ, Download, read_bytes
from moorage.checkpoint.s3.failures import S3Error
from moorage.checkpoint.s3.upload import Upload, sweep, uploading
from moorage.contract.s3 import Address
from s3_faults import OWNER, Fault, Faults, faulty

KEYS = {"region_name": "eu-west-1", "aws_access_key_id": "testing", "aws_secret_access_key": "hunter22"}
ADDRESS = Address(bucket="bucket", prefix="jobs/one")
PART = 5 << 20
"""The least that S3 takes but for the last."""

TUNING = Tuning(part_size=PART, parallel=3, timeout=0.5, patience=30.0, pace=0.02)

Reach = Callable[..., Bucket]


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
def reach(endpoint: str, s3: Any) -> Reach:
    """The bucket, through a proxy when its endpoint is given."""

    def make(through: str = endpoint, *, owner: str = OWNER, **tuning: Any) -> Bucket:
        options = {"endpoint_url": through, **KEYS}
        return Bucket(ADDRESS, options, owner=owner, tuning=Tuning(**{**vars(TUNING), **tuning}))

    return make


def write(bucket: Bucket, key: str, data: bytes, piece: int = 1_000_003) -> FileFacts:
    with uploading(bucket, key) as upload:
        for start in range(0, len(data), piece):
            upload.write(memoryview(data)[start : start + piece])
        return upload.finish()


def read(bucket: Bucket, key: str) -> bytes:
    return b"".join(bytes(piece) for piece in Download(bucket, key).pieces())


def stored(s3: Any) -> dict[str, bytes]:
    """What S3 holds, by its key."""
    found = s3.list_objects_v2(Bucket="bucket").get("Contents", ())
    return {item["Key"]: s3.get_object(Bucket="bucket", Key=item["Key"])["Body"].read() for item in found}


def unfinished(s3: Any) -> list[Any]:
    return s3.list_multipart_uploads(Bucket="bucket").get("Uploads", [])


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 2 * PART, 9 * PART + 12_345])
def test_what_is_written_is_read_whatever_its_size(reach: Reach, s3: Any, size: int) -> None:
    bucket, data = reach(), os.urandom(size)
    facts = write(bucket, "step-00000001/x", data)
    assert facts == FileFacts(size=size, xxh3_128=xxhash.xxh3_128_hexdigest(data))
    assert stored(s3) == {"jobs/one/step-00000001/x": data}
    assert read(bucket, "step-00000001/x") == data
    assert not unfinished(s3)


def test_any_part_can_be_read(reach: Reach) -> None:
    bucket, data = reach(), os.urandom(3_000_000)
    write(bucket, "x", data)
    room = memoryview(bytearray(1_000_000))
    Download(bucket, "x").read_into(room, 1_234_567)
    assert room == data[1_234_567:2_234_567]
    with pytest.raises(OSError, match="ends 1 bytes too early"):
        Download(bucket, "x").read_into(room, 2_000_001)
    assert read_bytes(bucket, "x", limit=len(data)) == data
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_bytes(bucket, "x", limit=10)
    with pytest.raises(FileNotFoundError):
        read_bytes(bucket, "y", limit=10)


def test_small_neighbours_are_read_in_one_request_and_large_ones_in_several(reach: Reach, endpoint: str) -> None:
    data = os.urandom(20 << 20)
    write(reach(), "x", data)
    faults = Faults(0)
    with faulty(endpoint, faults) as through:
        download = Download(reach(through), "x")
        found = bytearray(len(data))
        for start in range(0, 1 << 20, 4096):
            download.read_into(memoryview(found)[start : start + 4096], start)
        assert len(faults.requests) == 2, "HEAD and one GET"
        download.read_into(memoryview(found)[1 << 20 :], 1 << 20)
        assert len(faults.requests) == 6
    assert found == data


def test_it_is_listed_and_removed(reach: Reach, s3: Any) -> None:
    bucket = reach()
    s3.put_object(Bucket="bucket", Key="jobs/one-more/step-00000009/x", Body=b"another job's")
    s3.put_object(Bucket="bucket", Key="jobs/one/lies-at-the-top", Body=b"")
    keys = [f"step-{step:08d}/{name}" for step in (7, 30) for name in ("manifest.json", "a/b", "shard")]
    for key in keys:
        bucket.put(key, key.encode())
    assert bucket.folders() == ["step-00000007", "step-00000030"]
    sizes = {key: item.size for key, item in bucket.listing("step-00000007").items()}
    assert sizes == {"manifest.json": 27, "a/b": 17, "shard": 19}
    assert bucket.exists(keys[0]) and not bucket.exists("step-00000007")
    bucket.delete([*keys[:3], "never/was"])
    assert bucket.folders() == ["step-00000030"]
    assert "jobs/one-more/step-00000009/x" in stored(s3)


def test_more_than_one_page(reach: Reach, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    bucket = reach()
    keys = [f"step-00000007/{number:02d}" for number in range(10)]
    for key in keys:
        bucket.put(key, b"")
        s3.create_multipart_upload(Bucket="bucket", Key=f"jobs/one/{key}")
    assert list(bucket.listing()) == keys
    assert [key for key, _ in bucket.unfinished()] == keys
    sweep(bucket, lambda key, upload: key != keys[4])
    assert [item["Key"] for item in unfinished(s3)] == [f"jobs/one/{keys[4]}"]
    monkeypatch.setattr("moorage.checkpoint.s3.bucket._MOST_DELETED", 4)
    bucket.delete(keys)
    assert not bucket.listing()


def test_nothing_is_there_before_all_of_it_is(reach: Reach, s3: Any) -> None:
    bucket, data = reach(), os.urandom(3 * PART)
    with uploading(bucket, "x") as upload:
        upload.write(data)
        upload.finish()
        assert not stored(s3) and len(unfinished(s3)) == 1
    assert stored(s3) == {"jobs/one/x": data}
    with pytest.raises(ZeroDivisionError), uploading(bucket, "y") as upload:
        upload.write(data)
        raise ZeroDivisionError
    assert set(stored(s3)) == {"jobs/one/x"} and not unfinished(s3)


@pytest.mark.full(20, short=3)
def test_on_a_bad_day_nothing_is_lost_or_half_there(reach: Reach, s3: Any, endpoint: str, chaos_count: int) -> None:
    seeds = [int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000)) + number for number in range(chaos_count)]
    seen: Counter[Fault] = Counter()
    for seed in seeds:
        print(f"CHAOS_SEED={seed}")
        faults = Faults(seed, rate=0.4)
        with faulty(endpoint, faults) as through:
            _bad_day(reach(through), s3, seed)
        seen += faults.counts
    print(f"{len(seeds)} of {len(seeds)} bad days: every object whole, no part left; {seen.total()} faults:")
    for fault, times in seen.items():
        print(f"  {times} times {fault}")
    assert seen.total() >= 5 * len(seeds)


def _bad_day(bucket: Bucket, s3: Any, seed: int) -> None:
    data = {f"step-{seed:08d}/{number}": os.urandom(size) for number, size in enumerate([3 * PART + seed, 40_000, 0])}
    done: list[str] = []

    def save(key: str) -> None:
        write(bucket, key, data[key])
        done.append(key)

    threads = [threading.Thread(target=save, args=(key,)) for key in data]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        # Whoever looks meanwhile sees whole objects or none.
        for item in s3.list_objects_v2(Bucket="bucket", Prefix=ADDRESS.key(f"step-{seed:08d}/")).get("Contents", ()):
            assert item["Size"] == len(data[item["Key"].removeprefix("jobs/one/")])
        time.sleep(0.01)
    assert sorted(done) == sorted(data)
    assert {key: read(bucket, key) for key in data} == data
    assert {key: stored(s3)[f"jobs/one/{key}"] for key in data} == data
    assert not unfinished(s3)
    bucket.delete(list(data))
    assert not bucket.listing(f"step-{seed:08d}")


@pytest.mark.parametrize("fault", Fault)
def test_each_fault_is_survived(reach: Reach, s3: Any, endpoint: str, fault: Fault) -> None:
    """Every second request, on average: so that its second attempt often meets it too."""
    data = os.urandom(2 * PART + 1)
    faults = Faults(fault, rate=0.5, kinds=[fault])
    with faulty(endpoint, faults) as through:
        bucket = reach(through, timeout=0.3)
        write(bucket, "x", data)
        assert read(bucket, "x") == data
    assert faults.counts[fault]
    assert stored(s3) == {"jobs/one/x": data} and not unfinished(s3)


def test_reading_goes_on_where_it_broke_off(reach: Reach, endpoint: str) -> None:
    data = os.urandom(8 << 20)
    write(reach(), "x", data)
    faults = Faults(3, rate=0.85, kinds=[Fault.SHORT_ANSWER])
    with faulty(endpoint, faults) as through:
        room = memoryview(bytearray(len(data)))
        Download(reach(through), "x").read_into(room, 0)
    assert room == data
    broken = faults.counts[Fault.SHORT_ANSWER]
    assert broken >= 2
    assert len(data) <= faults.sent < len(data) + broken * _READ


def test_it_is_given_up_in_the_end_and_leaves_nothing(reach: Reach, s3: Any, endpoint: str) -> None:
    faults = Faults(0, kinds=[Fault.SLOW_DOWN])
    with faulty(endpoint, faults) as through:
        bucket = reach(through, patience=0.4)
        with pytest.raises(S3Error) as caught, uploading(bucket, "x") as upload:
            upload.write(bytes(PART + 1))
            faults.rate = 1.0
            try:
                upload.write(bytes(40 * PART))
            finally:
                faults.rate = 0.0
    message = str(caught.value)
    assert re.search(r"upload_part of s3://bucket/jobs/one/x failed \d+ times", message) and "SlowDown" in message
    assert not stored(s3) and not unfinished(s3)


def test_attempts_are_spread_by_chance(endpoint: str, reach: Reach) -> None:
    faults = Faults(0, rate=1.0, kinds=[Fault.SLOW_DOWN])
    with faulty(endpoint, faults) as through:
        bucket = reach(through, patience=2.0, pace=0.3)

        def ask(key: str) -> None:
            with pytest.raises(S3Error, match=f"head_object of s3://bucket/jobs/one/{key} failed"):
                bucket.exists(key)

        threads = [threading.Thread(target=ask, args=(str(number),)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    times: dict[str, list[float]] = {}
    for request, moment in faults.requests:
        times.setdefault(request, []).append(moment)
    pauses = [later - earlier for earlier, later, *_ in times.values()]
    assert len(pauses) == 8
    assert max(pauses) - min(pauses) > 0.03, pauses
    assert min(pauses) < 0.2, pauses


def test_the_dice_are_not_those_of_the_program(endpoint: str, reach: Reach, s3: Any) -> None:
    state = random.getstate()
    with faulty(endpoint, Faults(1, rate=0.5)) as through:
        write(reach(through), "x", bytes(PART + 1))
    assert random.getstate() == state


KEYED, WHOLE = "arn:aws:s3:::bucket/jobs/one/*,", "arn:aws:s3:::bucket,"


@pytest.mark.parametrize(
    ("denied", "permission", "resource", "action"),
    [
        ("POST .*uploads", "s3:PutObject", KEYED, lambda bucket: write(bucket, "x", bytes(PART + 1))),
        ("PUT .*partNumber=2", "s3:PutObject", KEYED, lambda bucket: write(bucket, "x", bytes(PART + 1))),
        ("POST .*uploadId", "s3:PutObject", KEYED, lambda bucket: write(bucket, "x", bytes(PART + 1))),
        ("PUT", "s3:PutObject", KEYED, lambda bucket: write(bucket, "x", b"")),
        ("GET", "s3:GetObject", KEYED, lambda bucket: read(bucket, "there")),
        ("HEAD", "s3:GetObject", KEYED, lambda bucket: bucket.exists("there")),
        ("GET .*list-type", "s3:ListBucket", WHOLE, lambda bucket: bucket.listing()),
        ("POST .*delete", "s3:DeleteObject", KEYED, lambda bucket: bucket.delete(["there"])),
        ("GET .*uploads", "s3:ListBucketMultipartUploads", WHOLE, lambda bucket: bucket.unfinished()),
    ],
)
def test_a_refusal_names_what_to_allow(
    reach: Reach, s3: Any, endpoint: str, *, denied: str, permission: str, resource: str, action: Callable[..., Any]
) -> None:
    reach().put("there", b"x")
    faults = Faults(0)
    with faulty(endpoint, faults) as through:
        faults.denied = denied
        with pytest.raises(S3Error) as caught:
            action(reach(through))
    message = str(caught.value)
    assert f"allow the job's role {permission} on {resource}" in message
    assert "s3://bucket/jobs/one" in message and "was refused" in message and "hunter22" not in message
    assert set(stored(s3)) == {"jobs/one/there"} and not unfinished(s3)


def test_parts_that_may_not_be_aborted_are_told(
    reach: Reach, s3: Any, endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults(0)
    faults.denied = "DELETE .*uploadId"
    with (
        faulty(endpoint, faults) as through,
        pytest.raises(ZeroDivisionError),
        uploading(reach(through), "x") as upload,
    ):
        upload.write(bytes(PART + 1))
        raise ZeroDivisionError
    assert "s3:AbortMultipartUpload on arn:aws:s3:::bucket/jobs/one/*" in caplog.text
    # The next start can.
    sweep(reach(), lambda key, upload: True)
    assert not unfinished(s3)


def test_the_bucket_of_another_account_is_refused(reach: Reach, s3: Any, endpoint: str) -> None:
    with faulty(endpoint, Faults(0)) as through:
        bucket = reach(through, owner="999999999999")
        with pytest.raises(S3Error, match=r"or the bucket is not that of account 999999999999 \(checkpoint_s3_owner\)"):
            write(bucket, "x", bytes(PART + 1))
        with pytest.raises(S3Error, match="999999999999"):
            bucket.listing()
    assert not stored(s3) and not unfinished(s3)


def test_no_bucket_no_credentials_and_no_way_there(reach: Reach, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.delete_bucket(Bucket="bucket")
    with pytest.raises(S3Error, match="there is no bucket bucket"):
        reach().listing()
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(S3Error, match=r"EndpointConnectionError.*network isolation"):
            reach(away, patience=0.1).listing()
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(S3Error, match="there are no credentials"):
        Bucket(ADDRESS, {"endpoint_url": away, "region_name": "eu-west-1"}).listing()


def test_memory_is_bounded_by_the_parts_in_flight(reach: Reach, endpoint: str) -> None:
    bucket = reach()
    data = memoryview(bytes(1 << 20))
    most = 0
    tracemalloc.start()
    try:
        upload = Upload(bucket, "x")
        for _ in range(60):
            upload.write(data)
            # Only ours: the server keeps its objects in this process.
            ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/moorage/checkpoint/s3/*")])
            most = max(most, sum(trace.size for trace in ours.traces))
        upload.publish()
    finally:
        tracemalloc.stop()
    print(f"60 MiB written through {most / 1e6:.0f} MB")
    assert most < (TUNING.parallel + 1) * PART + (1 << 20)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket", Address(bucket="bucket")),
        ("s3://bucket/", Address(bucket="bucket")),
        ("s3://my.bucket-1/a/b=3/c_d/", Address(bucket="my.bucket-1", prefix="a/b=3/c_d")),
        ("s3://", None), ("s3:///a", None), ("https://bucket/a", None), ("/opt/ml/checkpoints", None),
        ("s3://Bucket/a", None),
        ("s3://bucket/a//b", None), ("s3://bucket/../b", None), ("s3://bucket/a b", None), ("s3://bucket/a?b", None),
    ],
)  # fmt: skip
def test_addresses(text: str, address: Address | None) -> None:
    assert Address.parse(text) == address
