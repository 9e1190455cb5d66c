"""What a rehearsal makes of flags and of a job: encodings, config files, data, and when things are due."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from moorage.contract.config import JobConfig
from moorage.contract.values import decode
from moorage.errors import ConfigError, EngineError
from moorage.rehearsal import channels, clients, hosts, runs, spelling
from moorage.rehearsal.code import submitted
from moorage.rehearsal.job import Channel, Fault, Interruption, Job
from moorage.rehearsal.observer import Observer
from moorage.rehearsal.schedule import Faults, Moment, Schedule
from support import wait_until

HYPERPARAMETERS = {"amsgrad": "True", "optimizer": "adam", "layers": "[1, 2]", "lr": "1e-3", "schedule": "None"}


def job(tmp_path: Path, **given: Any) -> Job:
    return Job(**{"name": "digits", "folder": tmp_path / "run", "image": "image", **given})


# Spelling


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("step=50", Interruption(step=50)),
        ("time=30s", Interruption(time=30)),
        ("every=2m", Interruption(every=120)),
        ("random:5", Interruption(random=5)),
        ("random:5/400,hard", Interruption(random=5, among=400, hard=True)),
        ("step=7,host=algo-2,grace=1.5s", Interruption(step=7, host="algo-2", grace=1.5)),
    ],
)
def test_interruptions(text: str, expected: Interruption) -> None:
    assert spelling.interruption(text) == expected
    assert spelling.interruption(spelling.spelled(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kill-rank,step=40", Fault(kind="kill-rank", step=40)),
        ("kill-rank@step=40,rank=1", Fault(kind="kill-rank", step=40, rank=1)),
        ("freeze:time=10s,for=500ms,host=algo-1", Fault(kind="freeze", time=10, duration=0.5, host="algo-1")),
    ],
)
def test_faults(text: str, expected: Fault) -> None:
    assert spelling.fault(text) == expected
    assert spelling.fault(spelling.spelled(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "50", "step", "step=", "step=x", "step=-1", "time=5 parsecs", "random:", "step=5,soft", "step=1e3"]
)
def test_what_is_no_interruption(text: str) -> None:
    with pytest.raises(ConfigError):
        spelling.interruption(text)


@pytest.mark.parametrize("text", ["kill-rank", "explode,step=1", "freeze,step=1,time=2s", "freeze,step=1,hard"])
def test_what_is_no_fault(text: str) -> None:
    with pytest.raises(ConfigError):
        spelling.fault(text)


def test_channels_and_measures() -> None:
    assert spelling.channel("train=a,b,FastFile,sharded") == (
        "train",
        Channel(path=Path("a,b"), mode="FastFile", sharded=True),
    )
    assert spelling.channel("x=a=b,type=text/csv")[1] == Channel(path=Path("a=b"), content_type="text/csv")
    assert [spelling.rate(text) for text in ("0", "500k", "10MB/s", "1Gi", "3 m")] == [0, 5e5, 1e7, 2**30, 3e6]
    assert [spelling.duration(text) for text in ("30", "1.5h", "250ms")] == [30, 5400, 0.25]
    assert [spelling.share(text) for text in ("0.5", "25%", "random")] == [0.5, 0.25, "random"]
    with pytest.raises(ConfigError) as refused:
        spelling.pairs(["password"], "variable")
    assert "VALUE" in str(refused.value)


# The job


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "a_b"}, "not a name for a training job"),
        ({"image": None}, "has no image"),
        ({"hosts": 0}, "hosts cannot be 0"),
        ({"max_run": 10.0, "max_wait": 5.0}, "less than max_run"),
        ({"metrics": {"loss": "loss="}}, "has no group"),
        ({"metrics": {"loss": "("}}, "is not one"),
        ({"faults": (Fault(kind="freeze", step=1, host="algo-9"),)}, "no host 'algo-9'"),
        ({"interruptions": (Interruption(step=1, time=2.0),)}, "when is it to come?"),
        ({"data": {"train": Channel(path=Path("nowhere"))}}, "there is nothing at nowhere"),
        ({"data": {"..": Channel(path=Path())}}, "is not a channel name"),
        ({"client": "sdk-v9"}, "'sdk-v9' is not one of the choices"),
    ],
)
def test_a_job_that_would_be_refused(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        job(tmp_path, **given)
    assert words in str(refused.value)
    assert refused.value.fix


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("sdk-v2", ["true", '"adam"', "[1, 2]", "0.001", "null"]),
        ("sdk-v3", ["true", "adam", "[1, 2]", "0.001", "null"]),
        ("tuning", ["True", "adam", "[1, 2]", "1e-3", "None"]),
        ("plain", ["True", "adam", "[1, 2]", "1e-3", "None"]),
    ],
)
def test_every_client_writes_hyperparameters_its_own_way(tmp_path: Path, client: Any, expected: list[str]) -> None:
    given = job(tmp_path, client=client, hyperparameters=HYPERPARAMETERS, program="train.py", source=tmp_path)
    written = clients.hyperparameters(given, "/opt/ml/code")
    assert [written[name] for name in HYPERPARAMETERS] == expected
    assert [decode(text) for text in expected] == [True, "adam", [1, 2], 0.001, None]
    assert ("_tuning_objective_metric" in written) == (client == "tuning")
    assert written.get("sagemaker_program") == {"sdk-v2": '"train.py"', "sdk-v3": None}.get(client, "train.py")
    assert clients.command(given) == (("train", "train.py") if client == "sdk-v3" else ("train",))


def test_limits_of_the_platform(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2600 characters"):
        clients.hyperparameters(job(tmp_path, client="plain", hyperparameters={"a": "x" * 2600}), "")
    with pytest.raises(ConfigError, match="101 hyperparameters"):
        clients.hyperparameters(job(tmp_path, hyperparameters={str(n): "1" for n in range(101)}), "")
    with pytest.raises(ConfigError, match="513 characters"):
        clients.environment(job(tmp_path, env={"A": "x" * 513}))


# A host's folder


def test_code_is_taken_once_and_without_the_runs_that_lie_in_it(tmp_path: Path) -> None:
    for name in ("train.py", "lib/a.py", ".git/HEAD", "elsewhere/run-0/events.jsonl", "runs/other/logs/algo-1.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as it was")
    runs.make_folder(tmp_path / "lives", "number")
    given = submitted(job(tmp_path, source=tmp_path, folder=tmp_path / "runs" / "mine"))
    (tmp_path / "train.py").write_text("changed")
    assert given.source is not None and given.source.is_relative_to(tmp_path / "runs" / "mine")
    files = {str(path.relative_to(given.source)) for path in given.source.rglob("*") if path.is_file()}
    assert files == {"train.py", "lib/a.py"}
    assert (given.source / "train.py").read_text() == "as it was"


@pytest.mark.parametrize("client", ["sdk-v2", "sdk-v3", "tuning", "plain"])
def test_our_own_reader_understands_the_folder(tmp_path: Path, client: Any) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1")
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    (tmp_path / "code" / "train.py").write_text("")
    given = job(
        tmp_path, client=client, hosts=3, hyperparameters=HYPERPARAMETERS, program="train.py", source=tmp_path / "code",
        data={"train": Channel(path=tmp_path / "data", content_type="text/csv")},
    )  # fmt: skip
    given = submitted(given)
    for plan in hosts.plan(given, tmp_path / "hosts"):
        assert hosts.lay_out(given, plan) == []
        config = JobConfig.read({"SAGEMAKER_BASE_DIR": str(plan.ml), **plan.env})
        assert config.current_host == plan.name
        assert config.hosts == ("algo-1", "algo-2", "algo-3")
        assert config.name == "digits"
        assert {key: decode(decode(text)) for key, text in config.hyperparameters.items()} == {
            "amsgrad": True, "optimizer": "adam", "layers": [1, 2], "lr": 0.001, "schedule": None,
        }  # fmt: skip
        below = "digits" if client == "tuning" else ""
        assert config.has_checkpoint_config and config.checkpoint_folder == Path("/opt/ml/checkpoints", below)
        channel = config.channel("train")
        assert (channel.content_type, channel.distribution, channel.input_mode) == (
            "text/csv",
            "FullyReplicated",
            "File",
        )
        assert (plan.ml / "input/data/train/a.csv").read_text() == "1"
        code = plan.ml / ("input/data/code" if client == "sdk-v3" else "code")
        assert [path.name for path in code.iterdir()] == ["train.py"]


def test_hosts_are_unsorted_and_the_same_everywhere(tmp_path: Path) -> None:
    given = job(tmp_path, hosts=8)
    plans = hosts.plan(given, tmp_path)
    lists = [hosts.config_files(given, plan)["resourceconfig"]["hosts"] for plan in plans]
    assert lists.count(lists[0]) == 8
    assert lists[0] != sorted(lists[0])


def test_no_checkpoint_config_is_no_file(tmp_path: Path) -> None:
    given = job(tmp_path, checkpoint_config=False)
    (plan,) = hosts.plan(given, tmp_path)
    assert plan.checkpoints is None
    assert "checkpointconfig" not in hosts.config_files(given, plan)


def test_a_checkpoint_path_elsewhere_is_a_mount_of_its_own(tmp_path: Path) -> None:
    (plan,) = hosts.plan(job(tmp_path, checkpoint_path="/state"), tmp_path)
    assert [mount.target for mount in plan.mounts] == ["/opt/ml", "/state"]
    assert plan.mounts[1].source == plan.checkpoints


# Data


def objects(folder: Path, number: int) -> Path:
    (folder / "deep").mkdir(parents=True)
    for index in range(number):
        (folder / "deep" / f"{index}.txt").write_text(f"{index}\n")
    return folder


def test_shards_are_apart_and_together_are_all(tmp_path: Path) -> None:
    channel = Channel(path=objects(tmp_path / "data", 5), sharded=True)
    shards = [channels.keys(channel, index, 3) for index in range(3)]
    assert [len(shard) for shard in shards] == [2, 2, 1]
    assert set().union(*shards) == set(channels.keys(Channel(path=channel.path)))
    assert [len(channels.keys(channel, index, 9)) for index in range(9)].count(0) == 4


def test_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    data = objects(tmp_path / "data", 2)
    (data / "deep" / "up").symlink_to(data)
    assert list(channels.keys(Channel(path=data))) == ["deep/0.txt", "deep/1.txt"]


def test_fast_file_is_the_folder_itself_or_links_to_its_files(tmp_path: Path) -> None:
    data = objects(tmp_path / "data", 3)
    whole, part = Channel(path=data, mode="FastFile"), Channel(path=data, mode="FastFile", sharded=True)
    given = job(tmp_path, hosts=2, data={"whole": whole, "part": part})
    plans = hosts.plan(given, tmp_path / "hosts")
    for plan in plans:
        hosts.lay_out(given, plan)
    mounts = [{mount.target: mount for mount in plan.mounts if mount.read_only} for plan in plans]
    assert mounts[0]["/opt/ml/input/data/whole"].source == data.resolve()
    seen = [list(channels.keys(Channel(path=mount["/opt/ml/input/data/part"].source))) for mount in mounts]
    assert seen == [["deep/0.txt", "deep/2.txt"], ["deep/1.txt"]]


def test_data_that_does_not_fit_is_said_before_it_is_copied(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        os.truncate(file.fileno(), shutil.disk_usage(tmp_path).free)
    with pytest.raises(EngineError, match="FastFile"):
        channels.copy({"large": large}, tmp_path / "to")


def test_pipes_give_every_epoch_whole_also_after_one_that_was_left(tmp_path: Path) -> None:
    data = objects(tmp_path / "data", 3)
    big = tmp_path / "data" / "z.bin"
    big.write_bytes(bytes(300_000))
    pipe = channels.Pipe(channels.keys(Channel(path=data)), tmp_path / "fifos", "train")
    pipe.start()
    try:
        expected = b"0\n1\n2\n" + bytes(300_000)
        assert (tmp_path / "fifos" / "train_0").read_bytes() == expected
        assert (tmp_path / "fifos" / "train_1").exists(), "whoever has seen the end finds the next"
        with (tmp_path / "fifos" / "train_1").open("rb") as file:
            assert file.read(2) == b"0\n"
        read: list[bytes] = []
        third = tmp_path / "fifos" / "train_2"
        reader = threading.Thread(target=lambda: read.append(third.read_bytes()))
        wait_until(third.exists, what="the pipe of the third epoch")
        reader.start()
        reader.join(10)
        assert read == [expected]
    finally:
        pipe.close()


# When


def moment(step: int | None, *, first: int | None = 0, job: float = 0.0, attempt: float = 0.0) -> Moment:
    return Moment(step=step, first=first, job=job, attempt=attempt)


def test_interruptions_come_once_and_every_comes_again() -> None:
    schedule = Schedule([Interruption(step=10), Interruption(time=5), Interruption(every=2)], seed=0)
    assert schedule.next(moment(9)) is None
    assert schedule.next(moment(12)) == (Interruption(step=10), "step 10")
    assert schedule.next(moment(30, job=4, attempt=1)) is None
    assert schedule.next(moment(None, job=6, attempt=1)) == (Interruption(time=5), "5 s of the job")
    for _ in range(3):
        assert schedule.next(moment(None, job=60, attempt=2)) == (Interruption(every=2), "2 s of the attempt")
    assert (schedule.made, schedule.asked) == (5, 6)


def test_random_steps_are_those_of_the_seed() -> None:
    def steps(seed: int) -> list[int]:
        schedule, made = Schedule([Interruption(random=5, among=100)], seed), []
        for step in range(1, 100):
            while schedule.next(moment(step)):
                made.append(step)
        return made

    assert steps(3) == steps(3)
    assert steps(3) != steps(4)
    assert len(steps(3)) == 5


def test_random_gaps_count_from_the_first_step_of_an_attempt() -> None:
    schedule, made, step = Schedule([Interruption(random=4)], seed=1), [], 0
    for _ in range(4):
        first = step
        while not schedule.next(moment(step, first=first)):
            step += 1
        made.append(step - first)
    assert all(1 <= gap <= 30 for gap in made) and len(set(made)) > 1
    assert schedule.next(moment(step + 100, first=0)) is None


def test_faults_come_once() -> None:
    faults = Faults([Fault(kind="freeze", step=3), Fault(kind="kill-rank", time=9)])
    assert faults.due(moment(2)) == []
    assert [fault.kind for fault in faults.due(moment(3, job=9))] == ["freeze", "kill-rank"]
    assert faults.due(moment(3, job=9)) == []
    assert (faults.made, faults.asked) == (2, 2)


# What is seen


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("#metric step=120 epoch=3 train_loss=0.2", 120),
        ("epoch 2 Step: 7/90 loss 0.1", 7),
        ('{"global_step": 31, "loss": 2}', 31),
        ("\x1b[32mstep 4\x1b[0m", 4),
        ("footstep=3", None),
        ("the next step is taken", None),
    ],
)
def test_steps_in_lines(tmp_path: Path, line: str, step: int | None) -> None:
    observer = Observer({}, job(tmp_path).step_regex, lambda *found: None)
    observer.line("algo-1", line)
    assert observer.step == step


def test_metrics_are_counted_and_steps_told_apart_by_attempt(tmp_path: Path) -> None:
    found: list[Any] = []
    observer = Observer(
        {"loss": r"loss=(\S+)", "none": "none=(.)"}, job(tmp_path).step_regex, lambda *it: found.append(it)
    )
    for line in ("step=1 loss=0.5", "step=2 loss=oops", "loss=nan"):
        observer.line("algo-1", line)
    assert observer.matches == {"loss": 3, "none": 0}
    assert [value for _, _, value, _ in found[:2]] == [0.5, None]
    observer.begin()
    assert (observer.step, observer.highest) == (None, 2)


def test_the_ledger_tells_steps_of_this_attempt_only(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    event = json.dumps({"event": "save", "time": 1.0, "step": 90})
    (tmp_path / "ledger" / "1-algo-1.jsonl").write_text(event + "\n")
    (tmp_path / "ledger" / "2-algo-1.jsonl").write_text(event.replace("90", "40") + '\n{"event": "sa')
    observer = Observer({}, "step=(.)", lambda *found: None)
    observer.ledger(tmp_path, frozenset({"1-algo-1.jsonl"}))
    assert observer.step == 40
