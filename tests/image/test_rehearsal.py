"""Rehearsals in real containers: interruptions, cut uploads and faults of several hosts, and nothing left behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from image.containers import Containers, image_name
from image.engine_way import EngineWay
from moorage.rehearsal.containers import LABEL
from moorage.rehearsal.runs import LOCK_LABEL
from rehearsals import LOSS, Shell
from support import wait_until


@pytest.fixture
def shell(tmp_path: Path, containers: Containers) -> Iterator[Shell]:
    """Whatever happens in it, no container and no network is left."""
    with Shell.opened(tmp_path) as opened:
        yield opened
        remains = left(opened, containers)
        if remains:
            opened.moorage("clean")
    assert remains == set()


def left(shell: Shell, containers: Containers) -> set[str]:
    """Of the runs of this shell: others may be at work on the engine."""
    client, only = containers.client, {"label": LABEL}
    labels = {made.name: made.labels for made in client.containers.list(all=True, filters=only)}
    labels |= {made.name: made.attrs["Labels"] for made in client.networks.list(filters=only)}
    return {name for name, given in labels.items() if given.get(LOCK_LABEL, "").startswith(str(shell.state))}


Build = Callable[[str], str]


@pytest.fixture
def build(tmp_path: Path, containers: Containers) -> Iterator[Build]:
    """`build(lines)` gives the name of an image FROM the one under test; it is removed with the test."""
    made: list[str] = []

    def build(lines: str) -> str:
        folder = tmp_path / f"image-{len(made)}"
        folder.mkdir()
        (folder / "Dockerfile").write_text(f"FROM {image_name()}\n{lines}")
        made.append(f"moorage-test-{uuid.uuid4().hex[:10]}:1")
        containers.client.images.build(path=str(folder), tag=made[-1], rm=True)
        return made[-1]

    yield build
    for name in made:
        containers.client.images.remove(name, force=True)


def in_image(shell: Shell, *arguments: str, code: int = 0, timeout: float = 280) -> dict[str, Any]:
    """`moorage run` of the counting program: the outcome."""
    done = shell.moorage(
        "run", str(shell.program()), "-i", image_name(), *arguments, "--json", code=code, timeout=timeout
    )
    outcome: dict[str, Any] = json.loads(done.printed)
    shell.check_nothing_left(Path(outcome["folder"]))
    return outcome


def test_interrupted_at_random_steps_with_uploads_cut_two_hosts_of_two_ranks_are_bit_exact(shell: Shell) -> None:
    """Saved every ten steps, so that before the checkpoint that is cut another one came up whole."""
    shell.moorage("init", ".", "--image", image_name())
    arguments = ["-n", "2", "-r", "2", "-p", "epochs=3", "--times", "2", "--sync-stops-at", "random"]
    settings = ["-s", "strategy=ddp", "-s", "checkpoint_steps=10"]
    verdict = json.loads(shell.moorage("verify", *arguments, *settings, "--json", timeout=290).printed)
    assert (verdict["answer"], verdict["alike"]) == ("same", "bit-exact")
    assert verdict["interruptions"] == [2, 2]
    assert len(verdict["resumes"]) == 2
    assert verdict["weights"]["files"] == ["example.npy", "model.safetensors"]


def test_hosts_find_each_other_keep_their_limits_and_give_files_back(shell: Shell) -> None:
    """Memory and shared memory as asked, input read-only where it is mounted, and all files are the caller's."""
    data = shell.folder / "data"
    data.mkdir()
    (data / "one").write_text("1")
    program = shell.program(LOOK)
    done = shell.moorage(
        "run", str(program), "-i", image_name(), "-n", "2", "--shm-size", "100m", "--memory", "1g", "--cpus", "0.5",
        "-d", f"train={data},FastFile", "-e", "SPOKEN=yes", "--json",
    )  # fmt: skip
    outcome = json.loads(done.printed)
    files = shell.archived(outcome, "output")
    for name, other in (("algo-1", "algo-2"), ("algo-2", "algo-1")):
        seen = json.loads(files[f"{name}.json"])
        assert seen == {
            "host": name, "other": other, "shm": 100 * 2**20, "memory": 2**30, "spoken": "yes", "data": ["one"],
            "read_only": True,
        }  # fmt: skip
    for path in (shell.folder / outcome["folder"]).rglob("*"):
        assert path.stat().st_uid == os.getuid()


LOOK = """
import json, os, pathlib, socket
ml = pathlib.Path("/opt/ml")
resource = json.loads((ml / "input/config/resourceconfig.json").read_text())
me = resource["current_host"]
other = next(name for name in resource["hosts"] if name != me)
socket.gethostbyname(other)
shm = os.statvfs("/dev/shm")
limit = next(p for p in map(pathlib.Path, ("/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes")) if p.exists())
try:
    (ml / "input/data/train/two").write_text("2")
    read_only = False
except OSError:
    read_only = True
(ml / "output/data" / f"{me}.json").write_text(json.dumps({
    "host": socket.gethostname(), "other": other, "shm": shm.f_blocks * shm.f_frsize, "memory": int(limit.read_text()),
    "spoken": os.environ["SPOKEN"], "data": os.listdir(ml / "input/data/train"), "read_only": read_only,
}))
"""


def test_faults_of_machines_are_retried_and_end_as_the_platform_says(shell: Shell) -> None:
    outcome = in_image(shell, "-n", "2", "--fault", "kill-host,step=10,host=algo-2", "-p", "steps=40")
    first, second = outcome["attempts"]
    assert (first["ended_by"], second["ended_by"]) == ("fault", "finished")
    assert first["codes"]["algo-2"] == 137 and first["codes"]["algo-1"] != 0
    assert outcome["status"] == "Completed"


def test_a_host_that_is_cut_off_is_named_and_the_job_starts_again(shell: Shell) -> None:
    outcome = in_image(
        shell, "-n", "2", "--fault", "cut-network,step=10,host=algo-2", "-p", "steps=400", "-s", "heartbeat_timeout=4"
    )
    assert outcome["attempts"][0]["ended_by"] == "fault"
    assert outcome["status"] == "Completed"
    assert "algo-2" in shell.log(outcome, "algo-1")


def test_a_slow_host_is_slow_and_a_killed_rank_is_started_again(shell: Shell) -> None:
    outcome = in_image(
        shell, *LOSS, "-r", "2", "--fault", "slow-host,step=5,for=2s", "--fault", "kill-rank,step=30", "-p", "steps=80",
        "-s", "max_restarts=1",
    )  # fmt: skip
    assert outcome["faults"] == [2, 2]
    assert [attempt["ended_by"] for attempt in outcome["attempts"]] == ["finished"]
    assert "went on where" in shell.log(outcome)


def test_an_image_without_train_and_one_that_is_not_there(shell: Shell, build: Build) -> None:
    bare = build("RUN rm /opt/moorage/bin/train\n")
    refused = shell.moorage("run", str(shell.program()), "-i", bare, code=71)
    assert "cannot be started by docker run IMAGE train" in refused.told
    assert "PATH" in refused.told
    absent = shell.moorage("run", str(shell.program()), "-i", "moorage.invalid/absent:1", code=71)
    assert "is not here and cannot be pulled" in absent.told
    found = shell.moorage("doctor", "--image", bare, "--json", code=1)
    (train,) = (finding for finding in json.loads(found.printed) if finding["name"] == "train")
    assert train["state"] == "bad" and train["fix"]


def test_the_doctor_sees_a_shell_form_and_a_script_that_keeps_the_signal(shell: Shell, build: Build) -> None:
    image = build(
        "RUN printf '#!/bin/sh\\npython3 /train.py\\n' >/usr/local/bin/train && chmod 755 /usr/local/bin/train\n"
        "ENV PATH=/usr/local/bin:$PATH\nENTRYPOINT train\n"
    )
    found = json.loads(shell.moorage("doctor", "--image", image, "--json", code=1).printed)
    states = {finding["name"]: finding for finding in found}
    assert states["train"]["state"] == "warn" and "exec" in states["train"]["fix"]
    assert states["entry point"]["state"] == "bad"
    ours = json.loads(shell.moorage("doctor", "--image", image_name(), "--json").printed)
    assert {finding["name"]: finding["state"] for finding in ours}["train"] == "ok"


def test_a_container_that_ignores_sigterm_is_killed_when_the_grace_ends(shell: Shell, build: Build) -> None:
    deaf = build(
        "RUN printf '#!/bin/sh\\ntrap \"\" TERM\\necho step 1\\nwhile :; do sleep 0.1; done\\n' "
        ">/opt/moorage/bin/train && chmod 755 /opt/moorage/bin/train\n"
    )
    began = time.monotonic()
    outcome = json.loads(
        shell.moorage(
            "run", "-i", deaf, "--interrupt", "time=1s,grace=2s", "--max-run", "6s", "--grace", "1s", "--json", code=3
        ).printed
    )
    first = outcome["attempts"][0]
    assert first["codes"] == {"algo-1": 137} and 2 <= first["grace_used"] < 10
    assert outcome["secondary"] == "MaxRuntimeExceeded"
    assert time.monotonic() - began < 60


OFFICIAL = (
    "RUN printf '#!/opt/venv/bin/python3\\nfrom sagemaker_training.cli.train import main\\nmain()\\n' "
    ">/opt/moorage/bin/train\n"
)
"""The `train` of AWS's own toolkit, which the image has for its SM_* variables, in the place of ours."""


def test_an_image_with_another_train_is_rehearsed_the_same_way(shell: Shell, build: Build) -> None:
    """The official one does not pass SIGTERM on: the grace is over, and what was not saved is lost."""
    program = ["-p", "steps=75", "-p", "pause=0.05", "-p", "save_every=1000"]
    arguments = [str(shell.program()), *LOSS, "--interrupt", "step=10,grace=2s", *program]
    found = {}
    for name, image in (("ours", image_name()), ("official", build(OFFICIAL))):
        outcome = json.loads(shell.moorage("run", *arguments, "-i", image, "--json").printed)
        assert outcome["status"] == "Completed"
        stopped, went_on = outcome["attempts"]
        lost = stopped["last"] + 1 - went_on["first"]
        found[name] = (stopped["codes"]["algo-1"], lost, stopped["grace_used"])
        print(f"{name}: exit code {found[name][0]}, {lost} steps lost, {found[name][2]:.1f} s of 2 s grace used")
    assert found["ours"][:2] == (143, 0) and found["ours"][2] < 2
    assert found["official"][0] == 137 and found["official"][1] > 10 and found["official"][2] >= 2


def test_ctrl_c_twice_and_a_run_that_was_killed(shell: Shell, containers: Containers) -> None:
    program = str(shell.program())
    command = shell.start("run", program, "-i", image_name(), "-n", "2", "-p", "steps=100000", "-p", "fault=deaf")
    command.wait_for("step 5 ", timeout=120)
    command.interrupt()
    command.wait_for("Ctrl-C again kills it")
    command.interrupt()
    assert command.ends(60) == 130
    assert left(shell, containers) == set(), "before it gives the terminal back"

    dies = shell.start("run", program, "-i", image_name(), "-n", "2", "-p", "steps=100000")
    dies.wait_for("step 5 ", timeout=120)
    dies.process.kill()
    dies.ends()
    assert len(left(shell, containers)) == 3, "two containers and their network"
    removed = json.loads(shell.moorage("clean", "--json").printed)
    assert len([line for line in removed if line.startswith("container ")]) == 2
    assert len([line for line in removed if line.startswith("network ")]) == 1
    wait_until(lambda: left(shell, containers) == set(), what="the end of all that was left")
    assert list(shell.register.iterdir()) == []


def test_an_engine_that_dies_is_said_and_what_it_kept_is_found_later(shell: Shell, containers: Containers) -> None:
    with EngineWay.opened() as way:
        shell.env["DOCKER_HOST"] = way.host
        command = shell.start("run", str(shell.program()), "-i", image_name(), "-p", "steps=100000")
        command.wait_for("step 5 ", timeout=120)
        way.end()
        assert command.ends(60) == 71
    assert "the container engine cannot" in command.told and "Traceback" not in command.told
    del shell.env["DOCKER_HOST"]
    assert len(left(shell, containers)) == 2, "nobody could remove them"
    shell.moorage("clean")
    assert left(shell, containers) == set()


def test_an_image_for_another_machine(shell: Shell, containers: Containers) -> None:
    other = "arm64" if containers.client.version()["Arch"] == "amd64" else "amd64"
    name = f"moorage-test-{uuid.uuid4().hex[:10]}:1"
    containers.client.images.load(an_image(name, other))
    try:
        refused = shell.moorage("run", str(shell.program()), "-i", name, code=71)
        assert f"is for linux/{other}" in refused.told and "--platform" in refused.told
        found = json.loads(shell.moorage("doctor", "-i", name, "--json", code=1).printed)
        assert {finding["name"]: finding["state"] for finding in found}["platform"] == "bad"
    finally:
        containers.client.images.remove(name)


def test_eight_hosts_on_this_machine(shell: Shell) -> None:
    outcome = in_image(shell, "-n", "8", "-r", "1", "-p", "steps=5")
    assert outcome["exit_codes"] == {f"algo-{number}": 0 for number in range(1, 9)}


def an_image(name: str, architecture: str) -> bytes:
    """With nothing in it, as `docker save` writes it."""
    layer = io.BytesIO()
    tarfile.open(fileobj=layer, mode="w").close()
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }  # fmt: skip
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {"config.json": json.dumps(config), "manifest.json": json.dumps(manifest)}
    saved = io.BytesIO()
    with tarfile.open(fileobj=saved, mode="w") as tar:
        for path, data in [("layer.tar", layer.getvalue()), *((path, text.encode()) for path, text in files.items())]:
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return saved.getvalue()
