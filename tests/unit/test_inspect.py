"""`moorage inspect`: what is whole, what is damaged and where, for a person and for scripts."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest

from aws import aws_server
from moorage.checkpoint.durable import digest, write_bytes
from moorage.checkpoint.inspect import State, inspect_folder
from moorage.checkpoint.layout import BEST, IGNORE, MANIFEST, METADATA, UPLOADED, UPLOADING, move_aside, step_name
from moorage.checkpoint.manifest import Entry, Manifest
from moorage.checkpoint.report import age_text, as_text, size_text
from moorage.errors import CheckpointError, ConfigError

HOSTS = ("algo-1", "algo-1", "algo-2", "algo-2")


def shard(rank: int) -> tuple[str, bytes]:
    return f"ab-{rank:05d}.distcp", bytes(random.Random(rank).randbytes(1000 + rank))


def commit(folder: Path, step: int, *, only: str = "", **changes: Any) -> Path:
    """Four ranks on two hosts. only: the host whose folder this is, where they share no disk."""
    checkpoint = folder / step_name(step)
    checkpoint.mkdir(parents=True)
    files = {METADATA: Entry(size=4, xxh3_128=digest(b"meta"), host="algo-1")}
    for rank, host in enumerate(HOSTS):
        name, data = shard(rank)
        files[name] = Entry(size=len(data), xxh3_128=digest(data), host=host)
        if only in ("", host):
            write_bytes(checkpoint / name, data)
    write_bytes(checkpoint / METADATA, b"meta")
    given = {"epoch": 3, "samples": 64, "strategy": "fsdp", "created": 1.0, "attempt": 1} | changes
    manifest = Manifest(step=step, world_size=4, hosts=HOSTS, files=files, **given)
    write_bytes(checkpoint / MANIFEST, manifest.to_bytes())
    return checkpoint


def states(folder: Path, **options: Any) -> dict[int, str]:
    return {found.step: str(found.state) for found in inspect_folder(folder, **options).checkpoints}


def moorage(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moorage.cli", "inspect", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_folder_as_it_comes_from_s3(tmp_path: Path) -> None:
    commit(tmp_path, 10, metrics={"loss": 0.25, "accuracy": float("nan")})
    newest = commit(tmp_path, 20)
    (newest / BEST).touch()
    for path in list(newest.iterdir()):
        for mark in (UPLOADING, UPLOADED):
            path.with_name(path.name + mark).touch()
    (newest / (shard(2)[0] + UPLOADED)).unlink()
    (commit(tmp_path, 30) / MANIFEST).unlink()
    (tmp_path / "ledger").mkdir()
    (tmp_path / (step_name(20) + UPLOADED)).touch()
    done = moorage(tmp_path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["verified"], found["exit_code"], found["moved_aside"]) == (True, 0, [])
    newest, second, oldest = found["checkpoints"]
    assert [(one["step"], one["state"]) for one in (newest, second, oldest)] == [
        (30, "incomplete"), (20, "whole"), (10, "whole"),
    ]  # fmt: skip
    assert (second["best"], oldest["best"]) == (True, False)
    assert (second["uploaded_files"], second["files"], oldest["uploaded_files"]) == (5, 6, None)
    assert oldest["metrics"] == {"accuracy": "nan", "loss": 0.25}
    facts = {name: oldest[name] for name in ("epoch", "samples", "world_size", "strategy", "attempt", "whole_hosts")}
    assert facts == {
        "epoch": 3, "samples": 64, "world_size": 4, "strategy": "fsdp", "attempt": 1,
        "whole_hosts": ["algo-1", "algo-2"],
    }  # fmt: skip
    assert oldest["bytes"] == sum(path.stat().st_size for path in (tmp_path / step_name(10)).iterdir())
    text = moorage(tmp_path).stdout
    assert "whole, best" in text and "loss=0.25" in text and "4 fsdp" in text
    assert "uploaded: 5 of 6 files" in text
    assert "2 of 3 whole (hashes verified); a job goes on from step 20" in text


def test_a_prefix_in_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path, 10)
    (commit(tmp_path, 20) / shard(3)[0]).write_bytes(b"half")
    with aws_server() as endpoint:
        given = {"ENDPOINT_URL": endpoint, "REGION": "eu-west-1", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y"}
        for name, value in given.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3 = boto3.client("s3", endpoint_url=endpoint, region_name="eu-west-1")
        s3.create_bucket(Bucket="inspected", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        for path in tmp_path.rglob("*"):
            if path.is_file():
                s3.upload_file(str(path), "inspected", f"jobs/one/{path.relative_to(tmp_path)}")
        s3.close()
        done = moorage("s3://inspected/jobs/one")
        assert done.returncode == 1
        assert f"{shard(3)[0]} of algo-2: 4 bytes instead of 1003" in done.stdout
        assert "1 of 2 whole (hashes verified); a job goes on from step 10" in done.stdout
        one = moorage("s3://inspected/jobs/one/step-00000010/", "--json")
        assert (one.returncode, [found["step"] for found in json.loads(one.stdout)["checkpoints"]]) == (0, [10])
        assert (moorage("s3://inspected/jobs").returncode, moorage("s3://inspected/jobs").stdout) == (
            2,
            "no checkpoints\n",
        )
        absent = moorage("s3://another/jobs")
        assert absent.returncode == CheckpointError.exit_code and "s3://another/jobs" in absent.stderr
    wrong = moorage("s3://Bucket/jobs")
    assert wrong.returncode == ConfigError.exit_code and "name it as s3://BUCKET/PREFIX" in wrong.stderr


def test_every_damage_of_every_file_is_found(tmp_path: Path) -> None:
    names = [METADATA, MANIFEST, *(shard(rank)[0] for rank in range(4))]
    commit(tmp_path, 10)
    for number, name in enumerate(names):
        for place, change in enumerate(("flip", "cut", "empty")):
            step = 100 + 10 * number + place
            path = commit(tmp_path, step) / name
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            path.write_bytes({"flip": data, "cut": data[:-1], "empty": b""}[change])
    report = inspect_folder(tmp_path)
    assert [str(found.state) for found in report.checkpoints] == ["damaged"] * 18 + ["whole"]
    for found in report.checkpoints[:-1]:
        assert list(found.problems) == [names[(found.step - 100) // 10]]
    assert report.exit_code() == 1
    done = moorage(tmp_path)
    assert done.returncode == 1
    assert "ab-00003.distcp of algo-2: its content has changed (xxh3-128 differs)" in done.stdout


def test_quick_looks_at_sizes_only(tmp_path: Path) -> None:
    for step, change in ((10, lambda data: data[::-1]), (20, lambda data: data[1:])):
        path = commit(tmp_path, step) / shard(1)[0]
        path.write_bytes(change(path.read_bytes()))
    assert states(tmp_path, quick=True) == {20: "damaged", 10: "whole"}
    assert states(tmp_path) == {20: "damaged", 10: "damaged"}
    assert moorage(tmp_path, "--quick").returncode == 1
    assert moorage(tmp_path).returncode == 2


def test_the_folder_of_one_host_of_several(tmp_path: Path) -> None:
    commit(tmp_path, 10, only="algo-2")
    commit(tmp_path, 20, only="algo-2")
    (step_20,) = [found for found in inspect_folder(tmp_path).checkpoints if found.step == 20]
    assert step_20.state is State.PART and step_20.hosts == ("algo-2",)
    done = moorage(tmp_path)
    assert done.returncode == 2
    assert "this host's part is whole (algo-2); not here: the files of algo-1" in done.stdout
    assert "--host NAME" in done.stdout
    assert moorage(tmp_path, "--host", "algo-2").returncode == 0
    assert moorage(tmp_path, "--host", "algo-1").returncode == 2
    (tmp_path / step_name(20) / shard(2)[0]).unlink()
    assert states(tmp_path) == {20: "damaged", 10: "part"}
    assert moorage(tmp_path, "--host", "algo-2").returncode == 1


def test_one_checkpoint_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path, 10)
    commit(tmp_path, 20)
    assert states(tmp_path / step_name(10)) == {10: "whole"}
    monkeypatch.chdir(tmp_path / step_name(10))
    assert states(Path()) == {10: "whole"}
    (tmp_path / step_name(20)).rename(tmp_path / step_name(30))
    assert "the manifest is that of step-00000020" in moorage(tmp_path / step_name(30)).stdout


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    done = moorage(tmp_path)
    assert (done.returncode, done.stdout) == (2, "no checkpoints\n")
    (commit(tmp_path, 10) / MANIFEST).unlink()
    commit(tmp_path, 20)
    move_aside(tmp_path, 20)
    done = moorage(tmp_path)
    assert done.returncode == 2
    assert "it was never committed" in done.stdout and "damaged-00000020-1: moved aside" in done.stdout


def test_wrong_usage_is_told_from_an_answer(tmp_path: Path) -> None:
    for arguments, code in (((), 2), ((tmp_path, "--no-such"), 2), ((tmp_path / "nowhere",), 78)):
        done = moorage(*arguments)
        assert done.returncode == code, done
        assert done.stderr and not done.stdout
    assert "is not a folder of checkpoints" in done.stderr


@pytest.mark.parametrize("while_at", [10, 20])
def test_a_checkpoint_that_goes_while_somebody_looks_is_left_out(tmp_path: Path, while_at: int) -> None:
    """A job prunes meanwhile: before the look comes to it, or in the middle."""
    for step in (10, 20):
        commit(tmp_path, step)

    def prune(name: str, done: int, total: int) -> None:
        if name == step_name(while_at):
            shutil.rmtree(tmp_path / step_name(10), ignore_errors=True)

    report = inspect_folder(tmp_path, tell=prune)
    assert [(found.step, found.state) for found in report.checkpoints] == [(20, State.WHOLE)]


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    commit(tmp_path, 10)
    told: list[tuple[str, int, int]] = []
    report = inspect_folder(tmp_path, tell=lambda *given: told.append(given))
    total = report.checkpoints[0].manifest.size
    assert told[-1] == (step_name(10), total, total)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_nothing_is_changed(tmp_path: Path) -> None:
    commit(tmp_path, 10)
    (tmp_path / step_name(10) / ("x" + IGNORE)).touch()
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    "".join(as_text(inspect_folder(tmp_path)))
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before


def test_sizes_and_ages_read_well() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 1.5e6, 2e9, 3e12)] == [
        "0 B", "999 B", "1.0 kB", "1.5 MB", "2.0 GB", "3.0 TB",
    ]  # fmt: skip
    assert [age_text(age) for age in (-5, 90, 150, 8000, 200_000, float("nan"))] == [
        "0 s ago", "90 s ago", "2 min ago", "2 h ago", "2 d ago", "",
    ]  # fmt: skip


def test_it_needs_no_torch() -> None:
    code = "import sys; from moorage.checkpoint import inspect, report; print(*{'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b""
