"""What `moorage doctor` says of a machine without an engine, of leftovers, and of AWS credentials."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from aws import aws_server
from moorage.rehearsal.doctor import Asked, examine
from moorage.rehearsal.findings import Finding, State
from support import free_port

NO_ENGINE = {"DOCKER_HOST": f"tcp://127.0.0.1:{free_port()}"}


def found(asked: Asked, **env: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(asked, {**NO_ENGINE, **env})}


def test_without_an_engine_an_image_cannot_be_rehearsed_and_processes_can(tmp_path: Path) -> None:
    register = {"XDG_STATE_HOME": str(tmp_path)}
    wanted = found(Asked(image="moorage:cpu", folder=tmp_path / "not" / "there"), **register)
    assert wanted["engine"].state is State.BAD
    assert "--engine process" in wanted["engine"].fix
    assert wanted["disk"].state in (State.OK, State.WARN) and "free" in wanted["disk"].text
    assert wanted["packages"].state is State.OK
    assert found(Asked(folder=tmp_path), **register)["engine"].state is State.WARN
    assert not (tmp_path / "not").exists()


def test_what_a_dead_run_left_is_found(tmp_path: Path) -> None:
    register = {"XDG_STATE_HOME": str(tmp_path)}
    assert found(Asked(folder=tmp_path), **register)["leftovers"].state is State.OK
    dies = "import os, pathlib as p, moorage.rehearsal.runs as r; r.Entry.create(os.environ, p.Path()); os._exit(9)"
    subprocess.run([sys.executable, "-c", dies], env={**register, "PATH": ""}, check=False, timeout=60)
    left = found(Asked(folder=tmp_path), **register)["leftovers"]
    assert (left.state, left.fix) == (State.WARN, "moorage clean")


def test_aws_is_asked_who_the_caller_is(tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path), "AWS_REGION": "eu-central-1"}
    with aws_server() as endpoint:
        keys = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_ENDPOINT_URL": endpoint}
        known = found(Asked(folder=tmp_path, aws=True), **env, **keys)["aws"]
    assert known.state is State.OK and "123456789012" in known.text
    gone = found(Asked(folder=tmp_path, aws=True), **env, **keys)["aws"]
    assert gone.state is State.BAD and gone.fix
    assert "aws" not in found(Asked(folder=tmp_path), **env)


def test_the_command_prints_findings_with_their_fixes(tmp_path: Path) -> None:
    def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**NO_ENGINE, "XDG_STATE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        return subprocess.run(
            [sys.executable, "-m", "moorage.cli", "doctor", *arguments],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert doctor().returncode == 0
    (tmp_path / "moorage.toml").write_text('image = "moorage:cpu"\n')
    told = doctor()
    assert told.returncode == 1, "the job file asks for an image"
    assert "bad     engine" in told.stdout and "fix: " in told.stdout and "\x1b" not in told.stdout
    data = json.loads(doctor("--json").stdout)
    assert {finding["name"]: finding["state"] for finding in data}["engine"] == "bad"
