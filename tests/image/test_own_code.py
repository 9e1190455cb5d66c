"""Training code with nothing of moorage in it, in the image, by every way that clients give it."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from image.containers import Containers
from image.job import ContainerJob
from support import ROOT, JobFolder, digits
from wheels import make_wheel

SCRIPT = ROOT / "examples" / "script_mode"


def mounted(folder: JobFolder) -> dict[str, str]:
    shutil.copytree(SCRIPT, folder.base / "code")
    return {}


def channel(folder: JobFolder) -> dict[str, str]:
    shutil.copytree(SCRIPT, folder.base / "input" / "data" / "code")
    folder.write("inputdataconfig", {name: {"TrainingInputMode": "File"} for name in ("train", "code")})
    return {}


def source_dir(folder: JobFolder) -> dict[str, str]:
    archive = folder.file("input/sourcedir.tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(SCRIPT / "train.py", "train.py")
    # As the SDK writes them: JSON in JSON.
    place = "/opt/ml/input/sourcedir.tar.gz"
    return {"sagemaker_program": '"train.py"', "sagemaker_submit_directory": json.dumps(place)}


def shell(folder: JobFolder) -> dict[str, str]:
    shutil.copytree(SCRIPT, folder.base / "code")
    folder.file("code/start.sh", '#!/bin/bash\nset -eu\necho "bash has rank $RANK"\nexec python train.py "$@"\n')
    return {"sagemaker_program": "start.sh"}


def module(folder: JobFolder) -> dict[str, str]:
    shutil.copytree(SCRIPT, folder.base / "code" / "mine")
    folder.file("code/mine/__init__.py")
    return {"sagemaker_program": "mine.train"}


@pytest.mark.parametrize("given", [mounted, channel, source_dir, shell, module], ids=lambda given: given.__name__)
def test_a_script_for_torchrun_trains_unchanged(
    tmp_path: Path, containers: Containers, given: Callable[[JobFolder], dict[str, str]]
) -> None:
    job = ContainerJob(containers, tmp_path, ranks=2)
    folder = digits(job.folders["algo-1"])
    folder.hyperparameters(epochs="2", lr="0.004", **given(folder))
    (host,) = job.finishes(network="none")
    losses = [float(line.split()[-1]) for line in host.lines("epoch ")]
    assert len(losses) == 2, host.logs()
    assert losses[1] < losses[0]
    assert torch.load(folder.model / "model.pt", weights_only=True)["0.weight"].shape == (64, 64)
    if given is shell:
        assert len(host.lines("bash has rank")) == 2


def test_its_requirements_are_installed_at_the_start_without_a_network(tmp_path: Path, containers: Containers) -> None:
    job = ContainerJob(containers, tmp_path, ranks=2).program(
        "import extra, torch; print('extra', extra.version, 'beside torch', torch.__version__)",
        requirements_txt="extra>=1\n",
    )
    make_wheel(job.folders["algo-1"].base / "input" / "data" / "wheels", "extra", "1.5", requires="torch>=2")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/opt/ml/input/data/wheels"}
    (host,) = job.finishes(env=offline, network="none")
    there = containers.run("python", "-c", "import torch; print(torch.__version__)").strip()
    assert [line.split("extra ")[1] for line in host.lines("beside torch")] == [f"1.5 beside torch {there}"] * 2
    assert len(host.lines("pip: Successfully installed extra-1.5")) == 1, "once for both ranks"


@pytest.mark.parametrize("requirement", ["torch==2.1.0", "heavy"])
def test_its_requirements_cannot_change_torch(tmp_path: Path, containers: Containers, requirement: str) -> None:
    job = ContainerJob(containers, tmp_path).program("print('never')", requirements_txt=f"{requirement}\n")
    wheels = job.folders["algo-1"].base / "input" / "data" / "wheels"
    make_wheel(wheels, "torch", "2.1.0")
    make_wheel(wheels, "heavy", requires="torch==2.1.0")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/opt/ml/input/data/wheels"}
    (host,) = job.start(env=offline, network="none")
    assert host.wait() == 65, host.logs()
    assert not host.lines("never")
    failure = job.failure()
    assert failure and "torch" in failure and "2.13.0" in failure and requirement in failure


def test_without_a_network_the_failure_says_how_else(tmp_path: Path, containers: Containers) -> None:
    job = ContainerJob(containers, tmp_path).program("print('never')", requirements_txt="einops\n")
    (host,) = job.start(env={"PIP_RETRIES": "1"}, network="none")
    assert host.wait() == 65, host.logs()
    failure = job.failure()
    assert failure and "as a channel, with PIP_NO_INDEX=1" in failure
