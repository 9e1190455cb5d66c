"""`moorage run` on plain processes: a job's whole life, what goes wrong in it, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rehearsals import COUNTER, LOSS, Shell, alive, on_a_terminal
from support import wait_until


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell.opened(tmp_path) as opened:
        yield opened


def steps(outcome: dict[str, Any]) -> list[tuple[int, int]]:
    """First and last of each attempt, as its log tells."""
    return [(attempt["first"], attempt["last"]) for attempt in outcome["attempts"]]


def test_interruptions_soft_and_hard_and_it_goes_on_where_it_was(shell: Shell) -> None:
    outcome = shell.run(
        *LOSS, "--interrupt", "step=15", "--interrupt", "step=35,hard", "-p", "steps=60", "--max-wait", "2d"
    )
    assert (outcome["status"], outcome["secondary"]) == ("Completed", "Completed")
    assert outcome["interruptions"] == [2, 2]
    soft, hard, last = outcome["attempts"]
    assert (soft["ended_by"], hard["ended_by"], last["ended_by"]) == ("interruption", "interruption", "finished")
    assert (soft["codes"], hard["codes"], last["codes"]) == ({"algo-1": 143}, {"algo-1": 137}, {"algo-1": 0})
    assert soft["grace_used"] is not None and hard["grace_used"] is None
    assert hard["first"] == soft["last"] + 1, "not a step is lost where there was time to save"
    assert soft["last"] >= 15 and hard["last"] >= 35 and last["last"] == 60
    assert last["first"] <= hard["last"] + 1
    phases = [entry["status"] for entry in outcome["transitions"]]
    assert phases == [
        "Starting", "Downloading", "Training", "Interrupted", "Starting", "Downloading", "Training", "Interrupted",
        "Starting", "Downloading", "Training", "Uploading", "Completed",
    ]  # fmt: skip
    assert outcome["billable_seconds"] <= outcome["training_seconds"] + 1
    assert outcome["metrics"]["loss"] >= 60
    left_alone = shell.run("-p", "steps=60", "-p", "pause=0.0")
    assert shell.archived(outcome) == shell.archived(left_alone)


def test_an_upload_that_never_came_costs_the_steps_since(shell: Shell) -> None:
    outcome = shell.run("--interrupt", "step=20", "--sync-delay", "1h", "--sync-stops-at", "0", "-p", "steps=40")
    assert steps(outcome)[1] == (1, 40), "nothing had come up, so it began anew"
    assert outcome["attempts"][0]["cut"] >= 1
    assert outcome["status"] == "Completed"


def test_without_a_checkpoint_config_nothing_survives(shell: Shell) -> None:
    outcome = shell.run("--interrupt", "step=20", "--no-checkpoint-config", "-p", "steps=30")
    assert steps(outcome)[1] == (1, 30)
    assert not (shell.folder / outcome["folder"] / "checkpoints").exists() or not list(
        (shell.folder / outcome["folder"] / "checkpoints").iterdir()
    )


def test_a_host_that_is_lost_is_an_error_of_the_platform_and_is_retried(shell: Shell) -> None:
    outcome = shell.run("--fault", "kill-host,step=10", "-p", "steps=40")
    assert [attempt["ended_by"] for attempt in outcome["attempts"]] == ["fault", "finished"]
    assert "Restarting" in [entry["status"] for entry in outcome["transitions"]]
    assert outcome["faults"] == [1, 1]
    failed = shell.run("--fault", "kill-host,step=10", "--retries", "0", "-p", "steps=40", code=1)
    assert failed["failure_reason"].startswith("InternalServerError")
    assert failed["model"] is None


def test_a_rank_that_is_killed_is_started_again_by_train_itself(shell: Shell) -> None:
    outcome = shell.run("--fault", "kill-rank,step=10", "-r", "2", "-p", "steps=40", "-s", "max_restarts=1")
    assert outcome["faults"] == [1, 1]
    assert [attempt["ended_by"] for attempt in outcome["attempts"]] == ["finished"], "within one attempt"
    assert "went on where" in shell.log(outcome)


def test_a_host_that_is_frozen_for_a_while_goes_on(shell: Shell) -> None:
    outcome = shell.run("--fault", "freeze,step=10,for=1s", "-p", "steps=30")
    assert outcome["status"] == "Completed"
    frozen, thawed = shell.events(outcome, "Faulted")
    assert (frozen["over"], thawed["over"]) == (False, True)
    told = [event["time"] for event in shell.events(outcome, "HostLine") if "step" in event["line"]]
    silent = max(later - earlier for earlier, later in pairwise(told))
    assert silent > 0.8


def test_a_failure_has_the_reason_that_describe_training_job_would_give(shell: Shell) -> None:
    outcome = shell.run("-p", "fault=raises-7", "-s", "max_restarts=0", code=1)
    assert (outcome["status"], outcome["secondary"]) == ("Failed", "Failed")
    assert re.match(r"AlgorithmError: .*the seventh seal.*, exit code: 1$", outcome["failure_reason"], re.DOTALL)
    assert outcome["model"] is None
    assert len(outcome["attempts"]) == 1, "a program's own failure is no reason to start again"


def test_a_program_that_never_starts(shell: Shell) -> None:
    outcome = shell.run(program="import nowhere_to_be_found\n", code=1)
    assert "nowhere_to_be_found" in outcome["failure_reason"]


def test_max_run_stops_it_and_what_it_made_is_kept(shell: Shell) -> None:
    outcome = shell.run("--max-run", "2s", "-p", "steps=100000", code=3)
    assert (outcome["status"], outcome["secondary"]) == ("Stopped", "MaxRuntimeExceeded")
    assert outcome["attempts"][0]["codes"] == {"algo-1": 143}
    assert outcome["training_seconds"] < 20


def test_max_wait_ends_a_job_that_spot_has_no_place_for(shell: Shell) -> None:
    outcome = shell.run(
        "--interrupt",
        "step=5",
        "--restart-delay",
        "1h",
        "--max-run",
        "4s",
        "--max-wait",
        "4s",
        "-p",
        "steps=99999",
        code=3,
    )
    assert outcome["secondary"] == "MaxWaitTimeExceeded"
    assert len(outcome["attempts"]) == 1
    assert outcome["billable_seconds"] < outcome["transitions"][-1]["start"] - outcome["transitions"][0]["start"]


def test_a_metric_that_matched_nothing_is_a_warning_that_names_its_regex(shell: Shell) -> None:
    outcome = shell.run(*LOSS, "--metric", "accuracy=acc: ([0-9.]+)", "-p", "steps=5")
    assert outcome["metrics"] == {"accuracy": 0, "loss": 5}
    assert [warning for warning in outcome["warnings"] if "acc: ([0-9.]+)" in warning]


DATA = """
import os, pathlib, sys
base = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
data = base / "input" / "data"
whole = sorted(path.name for path in (data / "whole").iterdir())
part = sorted(path.name for path in (data / "part").iterdir())
piped = (data / "piped_0").read_bytes()
host = os.environ["SM_CURRENT_HOST"]
(base / "output" / "data" / f"{host}.txt").write_text(f"{whole} {part} {piped.decode()}")
(base / "model" / "model.txt").write_text("the same")
"""


def test_data_comes_as_each_input_mode_brings_it(shell: Shell) -> None:
    data = shell.folder / "data"
    data.mkdir()
    for name in "abc":
        (data / name).write_text(name)
    outcome = shell.run(
        "-n",
        "2",
        "-d",
        f"whole={data},FastFile",
        "-d",
        f"part={data},sharded",
        "-d",
        f"piped={data},Pipe",
        program=DATA,
    )
    found = shell.archived(outcome, "output")
    assert found["127.0.0.1.txt"].decode() == "['a', 'b', 'c'] ['a', 'c'] abc"
    assert found["127.0.0.2.txt"].decode() == "['a', 'b', 'c'] ['b'] abc"
    assert list(shell.archived(outcome)) == ["model.txt"], "of all hosts, merged"
    assert outcome["warnings"] == []


@pytest.mark.parametrize("client", ["sdk-v2", "sdk-v3", "tuning", "plain"])
def test_every_clients_way_to_bring_the_program(shell: Shell, client: str) -> None:
    outcome = shell.run(*LOSS, "--client", client, "-p", "steps=3", "-p", "fault=", "-p", "pause=1e-3")
    assert outcome["metrics"] == {"loss": 3}


def test_ctrl_c_stops_the_job_as_stop_training_job_does(shell: Shell) -> None:
    command = shell.start("run", str(shell.program()), "-p", "steps=100000", "--name", "stopped")
    command.wait_for("step 5 ")
    command.interrupt()
    assert command.ends() == 130
    assert "Stopped" in command.printed and "143" in command.printed
    (folder,) = (shell.folder / "runs").iterdir()
    assert json.loads((folder / "checkpoints" / "state.json").read_text())[0] >= 5, "it had its time to save"
    shell.check_nothing_left(folder)
    assert alive(command.process.pid) == []


def test_a_second_ctrl_c_kills_one_that_does_not_listen(shell: Shell) -> None:
    command = shell.start("run", str(shell.program()), "-p", "steps=100000", "-p", "fault=deaf")
    command.wait_for("step 5 ")
    hosts = processes(shell)
    command.interrupt()
    command.wait_for("Ctrl-C again kills it")
    command.interrupt()
    assert command.ends(30) == 130
    assert "137" in command.printed
    wait_until(lambda: not any(alive(host) for host in hosts), what="the end of all processes")
    shell.check_nothing_left(next((shell.folder / "runs").iterdir()))


def processes(shell: Shell) -> list[int]:
    """The hosts of the one run in the register: each leads a session of its own."""
    (entry,) = shell.register.glob("*.json")
    found = [int(number) for number in json.loads(entry.read_text())["processes"]]
    assert found and all(alive(number) for number in found)
    return found


def test_clean_removes_what_a_killed_run_left_and_leaves_one_that_lives(
    shell: Shell, request: pytest.FixtureRequest
) -> None:
    lives = shell.start("run", str(shell.program()), "-p", "steps=100000", "--name", "lives")
    lives.wait_for("step 5 ")
    (kept,) = processes(shell)
    dies = shell.start("run", str(shell.program()), "-p", "steps=100000", "--name", "dies")
    dies.wait_for("step 5 ")
    entries = {path: json.loads(path.read_text()) for path in shell.register.glob("*.json")}
    (left,) = (int(number) for entry in entries.values() for number in entry["processes"] if int(number) != kept)
    dies.process.kill()
    dies.ends()
    # Or it would end by itself, of the log that nobody reads any more.
    os.killpg(left, signal.SIGSTOP)
    request.addfinalizer(lambda: alive(left) and os.killpg(left, signal.SIGKILL))
    removed = json.loads(shell.moorage("clean", "--json").printed)
    assert f"process {left}" in removed
    assert [line for line in removed if line.startswith("folder ") and "dies" in line]
    wait_until(lambda: not alive(left), what="the end of what was left")
    assert alive(kept)
    assert len(list(shell.register.glob("*.json"))) == 1
    (folder,) = (shell.folder / "runs").glob("dies-*")
    assert (folder / "events.jsonl").exists(), "what it made stays"
    assert shell.moorage("clean").printed == "nothing is left of any run\n"
    lives.interrupt()
    assert lives.ends() == 130


def test_two_runs_at_once_do_not_meet(shell: Shell) -> None:
    program = str(shell.program())
    both = [shell.start("run", program, "-n", "2", "-p", "steps=30", "--json") for _ in range(2)]
    outcomes = [json.loads(command.printed) for command in both if command.ends() == 0]
    assert [outcome["status"] for outcome in outcomes] == ["Completed"] * 2
    assert outcomes[0]["folder"] != outcomes[1]["folder"]


def test_what_cannot_be_meant_is_said_before_anything_is_made(shell: Shell) -> None:
    program = str(shell.program())
    for arguments, words, code in (
        (["-d", "train=nowhere"], "there is nothing at nowhere", 78),
        (["--interrupt", "sometime"], "is not an interruption", 78),
        (["--fault", "freeze,step=1,host=algo-7"], "no host 'algo-7'", 78),
        (["--memory", "1g"], "cannot be limited where hosts are processes", 71),
        (["--fault", "cut-network,step=1"], "cut-network needs a network", 71),
        (["--steps", "5"], "No such option", 2),
    ):
        refused = shell.moorage("run", program, *arguments, code=code)
        assert words in refused.told
    assert "there is no program" in shell.moorage("run", "absent.py", code=66).told


def test_a_prefix_in_s3(shell: Shell) -> None:
    import boto3

    from aws import aws_server

    with aws_server() as endpoint:
        keys = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "eu-central-1"}
        shell.env |= {**keys, "AWS_ENDPOINT_URL": endpoint}
        client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        client.create_bucket(Bucket="kept", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        outcome = shell.run("--checkpoints", "s3://kept/job", "--interrupt", "step=10", "-p", "steps=20")
        assert steps(outcome)[1][0] == steps(outcome)[0][1] + 1
        assert "job/state.json" in {entry["Key"] for entry in client.list_objects_v2(Bucket="kept")["Contents"]}
        client.close()


def test_a_full_disk_is_a_failure_of_the_job(shell: Shell) -> None:
    if os.getuid() != 0:
        pytest.skip("fill-disk needs root")
    outcome = shell.run("--fault", "fill-disk,step=10", "-p", "steps=40", "-s", "max_restarts=0", code=1)
    assert outcome["failure_reason"].startswith("AlgorithmError: ") and outcome["exit_codes"] == {"algo-1": 1}
    assert "No space left on device" in shell.log(outcome), "the failure file did not fit either"


def test_logs_can_be_filtered_and_quiet_is_quiet(shell: Shell) -> None:
    program = str(shell.program(COUNTER))
    told = shell.moorage("run", program, "-p", "steps=12", "--only", "step 1").told
    assert "| step 12 loss" in told and "| step 2 loss" not in told
    quiet = shell.moorage("run", program, "-p", "steps=3", "--quiet")
    assert quiet.told == ""
    assert "Completed" in quiet.printed and "\x1b" not in quiet.printed


def test_on_a_terminal_one_line_lives_and_no_color_is_heeded(shell: Shell) -> None:
    command = [sys.executable, "-m", "moorage.cli", "run", str(shell.program()), *LOSS, "-p", "steps=40"]
    env = {"XDG_STATE_HOME": str(shell.state)}
    code, shown = on_a_terminal(command, cwd=shell.folder, env={**env, "NO_COLOR": ""})
    assert code == 0
    assert re.search(r"0:0\d  Training  step \d+, [0-9.]+/s  loss=[0-9.]+", shown), shown
    assert "\x1b[36malgo-1 | " in shown, "the host in its colour"
    code, shown = on_a_terminal(command, cwd=shell.folder, env={**env, "NO_COLOR": "1"})
    assert code == 0 and not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown)
