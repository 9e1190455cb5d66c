"""`make size`: what the image's size is made of."""

from __future__ import annotations

import json
import os
import subprocess

from image.containers import Containers
from support import ROOT


def size(containers: Containers, *options: str, **given: str) -> subprocess.CompletedProcess[str]:
    image, _, tag = containers.image.rpartition(":")
    env = {**os.environ, "IMAGE": image, "TAG": tag, "VARIANT": "cpu", **given}
    command = [str(ROOT / "image" / "size"), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_layers_and_packages_add_up(containers: Containers) -> None:
    done = size(containers, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["bytes"] == containers.client.images.get(containers.image).attrs["Size"]
    assert sum(layer["bytes"] for layer in report["layers"]) == report["bytes"]
    (venv,) = [layer["bytes"] for layer in report["layers"] if layer["name"].startswith("venv")]
    packages = sum(package["bytes"] for package in report["packages"]) + report["other_packages"]
    # The rest: links, what pip and its like leave beside packages, ours.
    assert 0.95 * venv < packages < 1.01 * venv
    assert len(report["packages"]) == 10
    assert report["packages"][0]["name"] == "torch"
    assert {"base", "moorage"} <= {layer["name"] for layer in report["layers"]}
    assert report["compiler"] > 100e6, "built with it, as is the default"


def test_the_table_ends_with_the_budget(containers: Containers) -> None:
    lines = size(containers).stdout.splitlines()
    assert lines[-1].startswith("total ") and lines[-1].endswith(": within it")
    assert any("torch 2" in line for line in lines)


def test_bad_input(containers: Containers) -> None:
    for given, error in (
        ({"TAG": "none"}, "error: there is no image "),
        ({"VARIANT": "gpu"}, "error: VARIANT=gpu is not a variant. "),
        ({"DOCKER_HOST": "unix:///nonexistent.sock"}, "error: no docker engine answers. "),
    ):
        done = size(containers, **given)
        assert done.returncode == 1
        assert done.stderr.startswith(error), done.stderr
    assert size(containers, "--all").stderr == "error: image/size has no option --all. There is --json\n"
