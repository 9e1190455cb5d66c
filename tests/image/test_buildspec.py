"""The whole of buildspec.yml, phase by phase, on a fresh clone: real engine, real registry, AWS's API by moto."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import site
import subprocess
import sys
import uuid
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import docker.errors
import pytest

from image.codebuild import CodeBuild, buildspec
from image.containers import Containers
from image.job import ContainerJob
from image.registry import PASSWORD, USER, EcrServer, ecr_server
from support import ROOT

# Of an outer make: they would override what the build is given.
OUTER = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS", "VARIANT", "IMAGE", "TAG", "VENV", "REPORTS")


@pytest.fixture
def ecr(tmp_path: Path) -> Iterator[EcrServer]:
    with ecr_server(tmp_path / "ecr") as made:
        yield made


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The last commit, as CodeBuild would have it; environments and the types' cache as after `make lint`."""
    if not (ROOT / ".git").exists():
        pytest.skip("CodeBuild's source is a commit, and this folder is not a git checkout")
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(source)], check=True)
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", source / ".mypy_cache")
    # What `make setup` would install: that of this test's environment, with the clone's toolkit.
    made = tmp_path / "venv"
    venv.create(made, with_pip=False)
    (packages,) = made.glob("lib/python3*/site-packages")
    (packages / "of-this-test.pth").write_text("\n".join([str(source / "container"), *site.getsitepackages()]))
    for tool in Path(sys.prefix, "bin").iterdir():
        if not (made / "bin" / tool.name).exists():
            (made / "bin" / tool.name).symlink_to(tool)
    (made / ".ready").touch()
    return source


@pytest.fixture
def build(clone: Path, ecr: EcrServer, containers: Containers) -> Iterator[CodeBuild]:
    """A build that pushes an image of its own name. VARIANTS and TEST_ARGS make it minutes instead of an hour."""
    name = f"moorage-test-{uuid.uuid4().hex[:8]}"
    env = {key: value for key, value in os.environ.items() if key not in OUTER}
    base = {} if "BASE_IMAGE" in env else {"BASE_IMAGE": base_image(containers)}
    yield CodeBuild(
        source=clone,
        env={
            **env, **base, **ecr.env, "VENV": str(clone.parent / "venv"),
            "TOOLS_VENV": str(ROOT / ".venv-tools"), "VARIANTS": "cpu", "IMAGE": name, "REPOSITORY": name,
            "PUSH_ARGS": "--create", "TEST_ARGS": "-k test_the_image_runs_and_names_its_commit",
        },
    )  # fmt: skip
    containers.remove()
    for image in containers.client.images.list():
        for tag in [*image.tags, *image.attrs.get("RepoDigests", [])]:
            if f"{name}:" in tag or f"{name}@" in tag:
                # A digest goes with the last tag of its repository.
                with contextlib.suppress(docker.errors.NotFound):
                    containers.client.images.remove(tag)


def base_image(containers: Containers) -> str:
    """What the image under test was made from: a Debian from a registry, or of `make base`."""
    local, default = "debian:bookworm-local", "debian:bookworm-slim"
    has = {tag for image in containers.client.images.list() for tag in image.tags}
    return local if local in has and default not in has else default


def test_the_image_runs_and_names_its_commit(containers: Containers) -> None:
    """What the build below runs of the image's tests."""
    assert "What SageMaker starts in a training container" in containers.run("train", "--help")
    revision = containers.client.images.get(containers.image).labels["org.opencontainers.image.revision"]
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?|unknown", revision)


def commit(source: Path) -> str:
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=source, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.timeout(900)
def test_from_the_source_to_an_image_in_ecr_that_trains(
    build: CodeBuild, ecr: EcrServer, containers: Containers, tmp_path: Path
) -> None:
    revision = commit(build.source)
    tag, name = f"cpu-{revision[:12]}", build.env["REPOSITORY"]
    mild = {"name": "CVE-1", "severity": "MEDIUM", "attributes": [{"key": "package_name", "value": "zlib1g"}]}
    ecr.scan_says(name, tag, [mild])
    build.run()
    assert build.codes == {"install": 0, "pre_build": 0, "build": 0, "post_build": 0}, build.log
    assert PASSWORD not in build.log

    assert ecr.registry.tags(name) == [tag]
    digest = ecr.registry.digest(name, tag)
    reports = build.source / "build" / "reports"
    pushed = json.loads((reports / "image-cpu.json").read_text())
    assert (pushed["tag"], pushed["digest"], pushed["revision"]) == (tag, digest, revision)
    parts = parts_of(json.loads((reports / "sbom-cpu.json").read_text()))
    assert {"pkg:pypi/torch", "pkg:pypi/moorage", "pkg:deb/debian/libc6", "pkg:deb/debian/python3.11-minimal"} <= parts
    found = [case.attrib["name"] for path in reports.glob("*.xml") for case in ElementTree.parse(path).iter("testcase")]
    assert sorted(found) == ["nothing from HIGH on", "test_the_image_runs_and_names_its_commit"]

    # The gate shuts for the finding that was mild; what is there already is not pushed again.
    gate = CodeBuild(source=build.source, env=build.env).run(["post_build"], SCAN_SEVERITY="MEDIUM")
    assert gate.codes == {"post_build": 2}
    assert "holds this image already" in gate.log
    assert "CVE-1" in gate.log

    reference = pushed["image"]
    containers.client.images.remove(f"{ecr.registry.host}/{name}:{tag}")
    containers.client.images.remove(f"{name}:cpu")
    containers.client.images.pull(reference, auth_config={"username": USER, "password": PASSWORD})
    (host,) = ContainerJob(containers, tmp_path / "job").digits(epochs=1).finishes(image=reference)
    assert host.engine.image.labels["org.opencontainers.image.revision"] == revision
    assert (tmp_path / "job" / "algo-1" / "model" / "model.safetensors").exists()


def parts_of(bill: dict[str, Any]) -> set[str]:
    return {part["purl"].partition("@")[0] for part in bill["components"] if "purl" in part}


def test_a_failed_build_pushes_nothing(build: CodeBuild, ecr: EcrServer) -> None:
    build.run(["build", "post_build"], TEST_ARGS="-k no_test_has_this_name")
    assert build.codes["build"] != 0, build.log
    assert build.codes["post_build"] != 0, build.log
    assert "Running command make test" in build.logs["build"]
    assert "make push" not in build.logs["post_build"]
    assert ecr.registry.tags(build.env["REPOSITORY"]) == []
    assert ecr.client.describe_repositories()["repositories"] == []


def test_commands_are_make_targets() -> None:
    spec = buildspec(ROOT)
    targets = set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [command for phase in spec["phases"].values() for command in phase["commands"]]
    guard = 'test "$CODEBUILD_BUILD_SUCCEEDING" = 1'
    assert spec["phases"]["post_build"]["commands"][0] == guard
    for command in commands:
        made = re.fullmatch(r"(?:\(for variant in \S+; do |case .* in .*\) )?make (\S+).*", command)
        assert command == guard or (made and made[1] in targets), command
