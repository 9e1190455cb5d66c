"""`make push` into real registries: ECR's two halves, and a registry of one's own. The images are of a few bytes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import docker
import pytest

from image.registry import PASSWORD, REGION, USER, EcrServer, Registry, ecr_server, registry
from support import ROOT, free_port, wait_until

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TAG = "cpu-0123456789ab"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    made = docker.from_env()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_ecr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EcrServer]:
    with ecr_server(tmp_path_factory.mktemp("ecr")) as made:
        yield made


@pytest.fixture
def ecr(shared_ecr: EcrServer) -> EcrServer:
    shared_ecr.tell("reset", "")
    return shared_ecr


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry")) as made:
        yield made


@dataclass
class Pushes:
    """Images of this test, and the command. repository: one that no other test uses."""

    client: Any
    home: Path
    image: str
    repository: str
    ids: set[str] = field(default_factory=set)

    def build(self, *, revision: str = COMMIT, content: bytes = b"1") -> None:
        """Make the image IMAGE:cpu."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo("content")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        label = [f"LABEL org.opencontainers.image.revision={revision}"] if revision else None
        self.client.api.import_image_from_data(archive.getvalue(), repository=self.image, tag="cpu", changes=label)
        self.ids.add(str(self.client.images.get(f"{self.image}:cpu").id))

    def __call__(self, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        run = subprocess.run(
            [sys.executable, str(ROOT / "image" / "push.py"), *arguments],
            env={
                "PATH": os.environ["PATH"], "HOME": str(self.home), "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_MAX_ATTEMPTS": "1", "IMAGE": self.image, "REPOSITORY": self.repository,
                "REPORTS": str(self.home / "reports"), "VARIANT": "cpu", **env,
            },
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "Traceback" not in run.stderr, run.stderr
        assert PASSWORD not in run.stdout + run.stderr
        assert "hunter22" not in run.stdout + run.stderr
        # Nor anywhere that docker's own login would have left it.
        assert not list(self.home.rglob("config.json"))
        return run

    def refused(self, *arguments: str, env: dict[str, str], code: int = 77) -> str:
        """The error, which is one line, and after which nothing is reported as pushed."""
        run = self(*arguments, env=env)
        assert run.returncode == code, run.stderr
        assert run.stdout == ""
        assert not list(self.home.glob("reports/*"))
        errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, run.stderr
        return errors[0]

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.home / "reports" / "image-cpu.json").read_text())


@pytest.fixture
def push(client: Any, tmp_path: Path) -> Iterator[Pushes]:
    name = f"moorage-test-{uuid.uuid4().hex[:8]}"
    pushes = Pushes(client, tmp_path, name, name)
    yield pushes
    for made in pushes.ids:
        client.images.remove(made, force=True)


def test_to_ecr_by_commit(push: Pushes, ecr: EcrServer) -> None:
    push.build()
    run = push("--create", env=ecr.env)
    assert run.returncode == 0, run.stderr
    digest = ecr.registry.digest(push.repository, TAG)
    assert run.stdout == f"{ecr.registry.host}/{push.repository}@{digest}\n"
    assert push.report["digest"] == digest
    assert push.report["image"] == run.stdout.strip()
    assert push.report["tag"] == TAG
    assert push.report["revision"] == COMMIT
    assert push.report["ecr"]["account"] == "123456789012"
    assert push.report["ecr"]["region"] == REGION

    made = ecr.client.describe_repositories(repositoryNames=[push.repository])["repositories"][0]
    assert made["imageTagMutability"] == "IMMUTABLE"
    assert made["imageScanningConfiguration"] == {"scanOnPush": True}
    assert made["encryptionConfiguration"]["encryptionType"] == "AES256"


def test_a_repository_may_be_encrypted_by_a_key_of_ones_own(push: Pushes, ecr: EcrServer) -> None:
    push.build()
    key = f"arn:aws:kms:{REGION}:123456789012:key/1"
    assert push("--create", "--kms-key", key, env=ecr.env).returncode == 0
    made = ecr.client.describe_repositories(repositoryNames=[push.repository])["repositories"][0]
    assert made["encryptionConfiguration"] == {"encryptionType": "KMS", "kmsKey": key}


def test_again_is_nothing_to_do_and_another_image_is_refused(push: Pushes, ecr: EcrServer) -> None:
    push.build()
    first = push("--create", env=ecr.env)
    kept = push.client.images.get(f"{push.image}:cpu")
    kept.tag(push.image, "kept")
    # Without the tag of the push the engine does not remember the digest: ECR is asked what the tag holds.
    push.client.images.remove(f"{ecr.registry.host}/{push.repository}:{TAG}")
    again = push(env=ecr.env)
    assert again.returncode == 0, again.stderr
    assert "holds this image already" in again.stderr
    assert again.stdout == first.stdout

    (push.home / "reports" / "image-cpu.json").unlink()
    push.build(content=b"2")
    error = push.refused(env=ecr.env)
    assert "exists already and holds another image" in error
    assert "PUSH_TAG" in error
    assert ecr.registry.digest(push.repository, TAG) == first.stdout.strip().rpartition("@")[2]
    assert push(env={**ecr.env, "PUSH_TAG": "second"}).returncode == 0
    assert ecr.registry.tags(push.repository) == [TAG, "second"]


def test_no_repository_is_made_unasked(push: Pushes, ecr: EcrServer) -> None:
    push.build()
    error = push.refused(env=ecr.env)
    assert f"account 123456789012 in {REGION} has no repository '{push.repository}'" in error
    assert "make push ARGS=--create" in error
    assert ecr.client.describe_repositories()["repositories"] == []


def test_what_no_commit_holds_is_not_pushed_as_one(push: Pushes, ecr: EcrServer) -> None:
    push.build(revision=f"{COMMIT}-dirty")
    assert "built of uncommitted changes to 0123456789ab" in push.refused("--create", env=ecr.env, code=78)
    push.build(revision="")
    assert "does not say of which commit" in push.refused("--create", env=ecr.env, code=78)
    assert ecr.registry.tags(push.repository) == []

    push.build(revision=f"{COMMIT}-dirty")
    assert push("--create", env={**ecr.env, "ALLOW_DIRTY": "1"}).returncode == 0
    assert ecr.registry.tags(push.repository) == [f"{TAG}-dirty"]


def test_credentials(push: Pushes, ecr: EcrServer) -> None:
    push.build()
    none = {key: value for key, value in ecr.env.items() if not key.startswith("AWS_") or key == "AWS_ENDPOINT_URL"}
    assert "no region is set" in push.refused(env=none)
    error = push.refused(env={**none, "AWS_REGION": REGION})
    assert "there are no AWS credentials" in error
    assert "aws sso login" in error
    ecr.tell("reset-auth", "0")
    try:
        assert "does not know these credentials" in push.refused(env=ecr.env)
    finally:
        ecr.tell("reset-auth", "inf")


def test_permission(push: Pushes, ecr: EcrServer) -> None:
    iam = boto3.client(
        "iam", endpoint_url=ecr.endpoint, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
    )
    iam.create_user(UserName="nobody")
    key = iam.create_access_key(UserName="nobody")["AccessKey"]
    iam.close()
    push.build()
    ecr.tell("reset-auth", "0")
    try:
        error = push.refused(
            env={**ecr.env, "AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        )
    finally:
        ecr.tell("reset-auth", "inf")
    assert "access denied" in error
    assert "allow ecr:DescribeRepositories" in error
    assert key["SecretAccessKey"] not in error


def test_aws_is_not_reached(push: Pushes, ecr: EcrServer) -> None:
    push.build()
    error = push.refused(env={**ecr.env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"})
    assert "AWS is not reached" in error
    assert "AWS_REGION" in error


def test_the_registry_is_not_reached(push: Pushes, ecr: EcrServer) -> None:
    push.build()
    error = push.refused("--create", env={**ecr.env, "ECR_HOST": f"localhost:{free_port()}"})
    assert "the registry is not reached from the engine" in error
    error = push.refused(env={"REGISTRY": f"localhost:{free_port()}"})
    assert "the registry is not reached from the engine" in error


def test_a_registry_that_wants_another_password(push: Pushes, ecr: EcrServer) -> None:
    push.build()
    error = push.refused(
        env={"REGISTRY": ecr.registry.host, "REGISTRY_USER": USER, "REGISTRY_PASSWORD": "of yesterday"}
    )
    assert "does not accept these credentials" in error
    assert "of yesterday" not in error
    assert "docker login" in error


def test_no_engine_and_no_image(push: Pushes, ecr: EcrServer) -> None:
    error = push.refused(env={**ecr.env, "DOCKER_HOST": f"unix://{push.home}/none.sock"}, code=71)
    assert "no docker engine answers" in error
    assert "make engine" in error
    error = push.refused(env=ecr.env, code=71)
    assert f"the image {push.image}:cpu is not here" in error
    assert "make build VARIANT=cpu" in error


def test_names_that_are_none(push: Pushes, plain: Registry) -> None:
    push.build()
    assert "'Big' is not a repository's name" in push.refused(
        env={"REGISTRY": plain.host, "REPOSITORY": "Big"}, code=78
    )
    assert "'a b' is not a tag" in push.refused(env={"REGISTRY": plain.host, "PUSH_TAG": "a b"}, code=78)


def test_a_registry_of_ones_own(push: Pushes, plain: Registry) -> None:
    """No word of AWS: neither credentials nor a region are there."""
    push.build()
    to = {"REGISTRY": plain.host}
    run = push(env=to)
    assert run.returncode == 0, run.stderr
    digest = plain.digest(push.repository, TAG)
    assert run.stdout == f"{plain.host}/{push.repository}@{digest}\n"
    assert push.report["ecr"] is None
    again = push(env=to)
    assert "holds this image already" in again.stderr
    assert again.stdout == run.stdout

    (push.home / "reports" / "image-cpu.json").unlink()
    push.build(content=b"2")
    assert "holds another image" in push.refused(env=to)
    assert plain.digest(push.repository, TAG) == digest
    assert push("--overwrite", env=to).returncode == 0
    assert plain.digest(push.repository, TAG) == push.report["digest"] != digest


def test_a_registry_with_a_password(push: Pushes, ecr: EcrServer) -> None:
    push.build()
    run = push(env={"REGISTRY": ecr.registry.host, "REGISTRY_USER": USER, "REGISTRY_PASSWORD": PASSWORD})
    assert run.returncode == 0, run.stderr
    assert ecr.registry.tags(push.repository) == [TAG]


def test_the_command_pushes_any_image_by_the_commit_of_its_checkout(
    push: Pushes, ecr: EcrServer, tmp_path: Path
) -> None:
    """`moorage push`, of an image that does not say itself which commit it was built of."""
    source = tmp_path / "project"
    source.mkdir()
    (source / "train.py").write_text("")
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    push.build(revision="")

    def moorage(*options: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "HOME": str(push.home), "AWS_EC2_METADATA_DISABLED": "true", **ecr.env}
        command = [sys.executable, "-m", "moorage.cli", "push", f"{push.image}:cpu", "--source", str(source), *options]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    missing = moorage()
    assert missing.returncode == 77 and "--create" in missing.stderr, missing.stderr
    run = moorage("--create", "--json")
    assert run.returncode == 0, run.stderr
    pushed = json.loads(run.stdout)
    assert pushed["tag"] == f"cpu-{commit[:12]}" and pushed["revision"] == commit
    assert pushed["image"].endswith(f"@{ecr.registry.digest(push.image, pushed['tag'])}")
    wait_until(lambda: ecr.client.list_images(repositoryName=push.image)["imageIds"], what="ECR's notice of the push")
    again = moorage()
    assert again.returncode == 0 and "holds this image already" in again.stderr, again.stderr
    assert again.stdout.strip() == pushed["image"]
    (source / "train.py").write_text("changed")
    dirty = moorage()
    assert dirty.returncode == 78 and "uncommitted changes" in dirty.stderr
    assert moorage("--allow-dirty", "--json").stdout.count("-dirty") >= 2
