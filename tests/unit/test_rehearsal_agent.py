"""The checkpoint agent by the platform's rules, over a folder and S3; and what is taken from the hosts in the end."""

from __future__ import annotations

import random
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from aws import aws_server
from moorage.checkpoint.uploads import waiting
from moorage.errors import ConfigError, EngineError
from moorage.rehearsal import gather, prefix
from moorage.rehearsal.agent import Agent, Pace
from moorage.rehearsal.prefix import FolderPrefix, Prefix
from support import wait_until

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_REGION": "eu-central-1",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with aws_server() as endpoint:
        env = {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
        client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        client.create_bucket(Bucket="rehearsal", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        client.close()
        yield env


Opened = Callable[[], Prefix]


@pytest.fixture(params=["folder", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Prefix]:
    if request.param == "folder":
        place = prefix.opened(tmp_path / "prefix", {})
    else:
        place = prefix.opened(f"s3://rehearsal/{tmp_path.name}", request.getfixturevalue("s3"))
    yield place
    place.close()


class Agents:
    """Of a job, and what they told."""

    def __init__(self, tmp_path: Path, place: Prefix) -> None:
        self._base, self._place = tmp_path, place
        self.told: list[tuple[str, str, str]] = []
        self.made: list[Agent] = []

    def agent(self, host: str = "algo-1", attempt: int = 1, **pace: float) -> tuple[Agent, Path]:
        folder = self._base / f"{host}-{attempt}"
        folder.mkdir()
        made = Agent(host, folder, self._place, pace=Pace(**pace), seed=f"{host}{attempt}", told=self._tell)
        self.made.append(made)
        return made, folder

    def _tell(self, host: str, action: str, file: str, size: int, seconds: float) -> None:
        self.told.append((host, action, file))

    def files(self, action: str) -> list[str]:
        return sorted(file for _, what, file in self.told if what == action)


@pytest.fixture
def agents(tmp_path: Path, opened: Prefix) -> Iterator[Agents]:
    made = Agents(tmp_path, opened)
    yield made
    for agent in made.made:
        agent.close()


def write(folder: Path, name: str, size: int = 10) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.randbytes(size))
    return path


def test_files_go_up_with_their_marks_and_what_is_ignored_does_not(agents: Agents, opened: Prefix) -> None:
    agent, folder = agents.agent()
    agent.restore()
    agent.start()
    write(folder, "step-00000001/.metadata.sagemaker-ignore")
    write(folder, "step-00000001/shard")
    wait_until(lambda: opened.keys() == {"step-00000001/shard": 10}, what="the upload")
    wait_until(lambda: agents.files("uploaded") == ["step-00000001/shard"], what="the word of it")
    times = {path.name: path.stat().st_mtime for path in (folder / "step-00000001").iterdir()}
    assert waiting(times) == {}, "by our own reading of the marks"
    (folder / "step-00000001/.metadata.sagemaker-ignore").rename(folder / "step-00000001/.metadata")
    wait_until(lambda: len(opened.keys()) == 2, what="the renamed file")
    write(folder, "step-00000001/shard", 20)
    wait_until(lambda: opened.keys()["step-00000001/shard"] == 20, what="the changed file")
    assert not [file for file in agents.files("uploaded") if file.endswith("ignore")]


def test_every_host_is_given_everything_and_what_one_deletes_is_gone(agents: Agents, opened: Prefix) -> None:
    for host in ("algo-1", "algo-2"):
        agent, folder = agents.agent(host)
        agent.restore()
        write(folder, f"step-00000001/{host}")
        agent.finish(30)
    anew = {host: agents.agent(host, 2) for host in ("algo-1", "algo-2")}
    for agent, folder in anew.values():
        agent.restore()
        agent.start()
        assert sorted(path.name for path in (folder / "step-00000001").iterdir()) == ["algo-1", "algo-2"]
    (anew["algo-1"][1] / "step-00000001/algo-2").unlink()
    wait_until(lambda: list(opened.keys()) == ["step-00000001/algo-1"], what="the deletion")
    for agent, _ in anew.values():
        agent.finish(30)
    assert list(opened.keys()) == ["step-00000001/algo-1"], "the other host's copy is not uploaded again"
    assert agents.files("uploaded") == ["step-00000001/algo-1", "step-00000001/algo-2"]


def test_a_late_agent_brings_it_up_later(agents: Agents, opened: Prefix) -> None:
    agent, folder = agents.agent(delay=1.0)
    agent.start()
    write(folder, "shard")
    began = time.monotonic()
    wait_until(opened.keys, what="the upload")
    assert time.monotonic() - began > 0.9


def test_a_share_of_the_upload_and_no_half_file(agents: Agents, opened: Prefix) -> None:
    agent, folder = agents.agent()
    agent.start()
    agent.pause()
    for number in range(10):
        write(folder, f"step-00000001/{number}", 2**20)
    agent.cut(0.55)
    assert set(opened.keys().values()) == {2**20}
    assert len(opened.keys()) == 5
    assert agent.left == 5
    assert agents.files("cut"), "one was broken off"


def test_an_agent_that_is_gone_brings_up_nothing(agents: Agents, opened: Prefix) -> None:
    agent, folder = agents.agent(bandwidth=2**20)
    agent.start()
    write(folder, "large", 30 * 2**20)
    wait_until((folder / "large.sagemaker-uploading").exists, what="the beginning")
    began = time.monotonic()
    agent.abandon()
    agent.finish(60)
    assert time.monotonic() - began < 5
    assert opened.keys() == {}
    assert not (folder / "large.sagemaker-uploaded").exists()


def test_a_file_that_goes_while_it_waits_is_nothing(agents: Agents, opened: Prefix) -> None:
    agent, folder = agents.agent(delay=0.2)
    agent.start()
    for number in range(20):
        write(folder, f"step-{number}/shard").unlink()
        (folder / f"step-{number}").rmdir()
    write(folder, "last")
    wait_until(opened.keys, what="the last")
    assert agent.error is None
    assert list(opened.keys()) == ["last"]


def test_a_bandwidth_holds(agents: Agents, opened: Prefix) -> None:
    agent, folder = agents.agent(bandwidth=4 * 2**20)
    write(folder, "shard", 2 * 2**20)
    began = time.monotonic()
    agent.finish(30)
    assert 0.5 <= time.monotonic() - began < 5
    assert opened.keys() == {"shard": 2 * 2**20}


def test_two_agents_that_empty_and_fill_one_folder(tmp_path: Path) -> None:
    place = FolderPrefix(tmp_path / "prefix")
    for number in range(50):
        place.put(write(tmp_path, "source"), "step/one", lambda count: None)
        place.delete("step/one")
        assert place.keys() == {}, number
        assert list((tmp_path / "prefix").iterdir()) == []
    place.close()


def test_a_prefix_that_cannot_be_used(tmp_path: Path, s3: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="not an address in S3"):
        prefix.opened("s3://Bad_Bucket", {})
    with pytest.raises(EngineError, match="cannot use the checkpoint prefix s3://absent"):
        prefix.opened("s3://absent/x", s3)
    write(tmp_path, "file")
    with pytest.raises(ConfigError, match="cannot be written"):
        prefix.opened(tmp_path / "file" / "below", {})


# In the end


def names(archive: Path | None) -> list[str]:
    assert archive is not None
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_hosts_are_merged_and_a_name_they_disagree_on_is_told(tmp_path: Path) -> None:
    for host, text in (("algo-1", "one"), ("algo-2", "two")):
        (tmp_path / host / "deep").mkdir(parents=True)
        (tmp_path / host / "deep" / "weights").write_text(text)
        (tmp_path / host / "same").write_text("same")
        (tmp_path / host / host).write_text("")
    files, differ = gather.merge({host: tmp_path / host for host in ("algo-1", "algo-2")})
    assert differ == ["deep/weights"]
    assert files["deep/weights"].read_text() == "two"
    assert names(gather.archive(files, tmp_path / "model.tar.gz")) == ["algo-1", "algo-2", "deep/weights", "same"]
    assert gather.archive({}, tmp_path / "none.tar.gz") is None
    assert not (tmp_path / "none.tar.gz").exists()


@pytest.mark.parametrize(
    ("ended", "texts", "reason"),
    [
        ([("algo-1", 0), ("algo-2", 0)], {"algo-1": "stale"}, ""),
        ([("algo-2", 1), ("algo-1", 69)], {"algo-1": "lost", "algo-2": "why"}, "AlgorithmError: why, exit code: 1"),
        ([("algo-2", 137), ("algo-1", 69)], {"algo-1": "lost"}, "AlgorithmError: lost, exit code: 69"),
        ([("algo-1", 2)], {}, "AlgorithmError: , exit code: 2"),
        ([("algo-1", 1)], {"algo-1": "x" * 3000}, f"AlgorithmError: {'x' * 1024}, exit code: 1"),
    ],
)
def test_the_failure_reason(tmp_path: Path, ended: Any, texts: dict[str, str], reason: str) -> None:
    for host, text in texts.items():
        (tmp_path / host).write_text(text)
    assert gather.failure_reason(ended, {host: tmp_path / host for host, _ in ended}) == reason
