"""`make build`: what a change costs, what two builds have in common, and what is said of bad input."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.builds import Builds, change, copy_of_the_tree
from image.containers import Containers
from image.contents import Entry, contents
from support import ROOT

LOCK = "requirements/cpu.lock"


@pytest.fixture
def builds(containers: Containers) -> Iterator[Builds]:
    made = Builds(containers.client)
    try:
        yield made
    finally:
        containers.remove()
        made.remove()


# --- what a change costs


def test_a_change_of_our_code_changes_our_layer_only(tmp_path: Path, builds: Builds) -> None:
    """In a folder with a space in its name, with certificates in a file whose name has a comma."""
    tree = copy_of_the_tree(tmp_path / "a tree")
    certificates = tmp_path / "certificates, mine.pem"
    given = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    env = {}
    if given:
        shutil.copy(given, certificates)
        env["PIP_CERT"] = str(certificates)
    before = builds.makes(tree, **env)
    with (tree / "container" / "moorage" / "cli" / "app.py").open("a") as file:
        file.write("# one more line\n")
    after = builds.makes(tree, **env)
    print(f"rebuilt after a change of our code in {after.seconds:.1f} s")
    assert after.layers[:-1] == before.layers[:-1]
    assert after.layers[-1] != before.layers[-1]
    again = builds.makes(tree, **env)
    assert again.layers == after.layers


@pytest.mark.full(1, short=0)
def test_a_change_of_a_dependency_changes_its_layer_only(tmp_path: Path, builds: Builds, chaos_count: int) -> None:
    """Not even ours, which is written after it: equal content is an equal layer."""
    if not chaos_count:
        pytest.skip("all packages installed anew: with MOORAGE_CHAOS=full")
    tree = copy_of_the_tree(tmp_path / "tree")
    before = builds.makes(tree)
    change(tree / LOCK, r"^torchdata==.*\n( +--hash.*\n)+", "")
    after = builds.makes(tree)
    assert after.layers[:-2] == before.layers[:-2]
    assert after.layers[-2] != before.layers[-2]
    assert after.layers[-1] == before.layers[-1]


@pytest.mark.full(2, short=0)
@pytest.mark.timeout(900)
def test_clean_builds_are_alike(chaos_count: int, builds: Builds, containers: Containers) -> None:
    """To the byte and the time of every file, bytecode included: minutes, with all packages fetched anew."""
    if not chaos_count:
        pytest.skip("two builds from nothing: with MOORAGE_CHAOS=full")
    found: list[dict[str, Entry]] = []
    layers = []
    for number in range(chaos_count):
        built = builds.makes(NO_CACHE="1", TAG=f"clean{number}")
        print(f"built from nothing in {built.seconds:.0f} s")
        entries = contents(containers, f"{builds.name}:clean{number}", whole=True)
        found.append({name: entry for name, entry in entries.items() if name.startswith("opt/")})
        layers.append(built.layers[-2:])
    first, *others = found
    assert len(first) > 10_000
    for other in others:
        assert not [name for name in first.keys() | other.keys() if first.get(name) != other.get(name)]
    assert len(set(layers)) == 1


# --- the label that says of which commit it is


def test_the_label_says_of_which_commit_it_is(tmp_path: Path, builds: Builds) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", "-C", str(tree), *who, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    def revision() -> str:
        return builds.makes(tree).labels["org.opencontainers.image.revision"]

    without = builds.makes(tree)
    assert without.labels["org.opencontainers.image.revision"] == "unknown"
    assert "the label with the revision will say 'unknown'" in without.output
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "All")
    commit = git("rev-parse", "HEAD")
    (tree / "notes.txt").write_text("not in the image")
    assert revision() == commit
    (tree / "container" / "moorage" / "added.py").write_text("")
    assert revision() == f"{commit}-dirty"


# --- an engine and a base that are there


@pytest.mark.parametrize(("script", "says"), [("engine", "docker engine .* answers"), ("base", "is there already")])
def test_what_is_there_is_left_as_it_is(containers: Containers, script: str, says: str) -> None:
    name = containers.client.images.get(containers.image).tags[0]
    done = subprocess.run(
        [ROOT / "image" / script, *([name] if script == "base" else [])],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert re.search(says, done.stderr)


@pytest.mark.parametrize("script", ["engine", "base"])
def test_an_engine_elsewhere_that_does_not_answer(tmp_path: Path, script: str) -> None:
    """None is started here in its place."""
    env = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    done = subprocess.run([ROOT / "image" / script], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no docker engine answers")
    assert f"{tmp_path}/none.sock" in done.stderr


# --- bad input


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"VARIANT": "gpu"}, "VARIANT=gpu is not a variant. Use VARIANT=cpu or VARIANT=cuda"),
        ({"EFA": "1"}, "EFA=1 with VARIANT=cpu. EFA is for VARIANT=cuda; leave it out"),
        ({"EFA": "yes"}, "EFA=yes is neither 0 nor 1. Use EFA=0 or EFA=1"),
        ({"COMPILER": "off"}, "COMPILER=off is neither 0 nor 1. Use COMPILER=0 or COMPILER=1"),
        ({"PIP_CERT": "/nonexistent.pem"}, "PIP_CERT=/nonexistent.pem cannot be read. "),
        ({"PIP_CERT": "/etc"}, "PIP_CERT=/etc cannot be read. "),
        ({"WHEELS": "/nonexistent"}, "WHEELS=/nonexistent holds no wheel. "),
        ({"IMAGE": "Moor age"}, "IMAGE=Moor age with TAG=cpu is not a name for an image. "),
    ],
)
def test_a_wrong_setting(builds: Builds, given: dict[str, str], error: str) -> None:
    built = builds.run(**given)
    assert built.code == 1
    assert built.error.startswith(error), built.output


def test_no_engine(tmp_path: Path, builds: Builds) -> None:
    built = builds.run(DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert built.code == 1
    assert built.error.startswith("no docker engine answers. ")
    assert f"{tmp_path}/none.sock" in built.error
    assert "'make engine'" in built.error and "DOCKER_HOST" in built.error


def commands(folder: Path, *names: str) -> Path:
    """A folder for PATH with these commands of the machine, and no docker."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name) or f"/usr/bin/{name}")
    return folder


def which_all(name: str) -> list[Path]:
    return [path for folder in os.environ["PATH"].split(os.pathsep) if (path := Path(folder) / name).exists()]


def client_version(docker: Path) -> int:
    said = subprocess.run(
        [docker, "version", "--format", "{{.Client.Version}}"], capture_output=True, text=True, check=True
    )
    return int(said.stdout.split(".")[0])


def has_buildx(docker: Path) -> bool:
    return subprocess.run([docker, "buildx", "version"], capture_output=True, check=False).returncode == 0


NEEDED = ("bash", "dirname", "mktemp", "rm", "tail", "cat")


def test_no_docker(tmp_path: Path, builds: Builds) -> None:
    built = builds.run(PATH=str(commands(tmp_path / "bin", *NEEDED)))
    assert built.code == 1
    assert built.error == "docker is not installed. 'make engine' installs and starts it on Debian or Ubuntu"


class OldEngine(http.server.BaseHTTPRequestHandler):
    """What an engine of 2018 says of itself."""

    def do_GET(self) -> None:
        version = {
            "Version": "18.03.1-ce",
            "ApiVersion": "1.37",
            "MinAPIVersion": "1.12",
            "Os": "linux",
            "Arch": "amd64",
        }
        body = json.dumps(version).encode() if self.path.endswith("/version") else b"OK"
        self.send_response(200)
        self.send_header("Api-Version", "1.37")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_engine_without_buildkit(tmp_path: Path, builds: Builds) -> None:
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "engine.sock"), OldEngine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            built = builds.run(DOCKER_HOST=f"unix://{tmp_path}/engine.sock")
        finally:
            server.shutdown()
            thread.join()
    assert built.code == 1
    assert built.error == "this docker engine, 18.03.1-ce, has no BuildKit. Use 18.09 or newer, 20.10 at best"


def test_a_client_without_buildx(tmp_path: Path, builds: Builds) -> None:
    """As Debian 13 installs it by docker-cli alone: the client says its version, and cannot build."""
    folder = commands(tmp_path / "bin", *NEEDED)
    (folder / "docker").write_text("""#!/bin/bash
case "$*" in
    *Server*) echo "26.1.5 amd64" ;;
    *Client*) echo "26.1.5" ;;
    *) echo "docker: '$1' is not a docker command." >&2; exit 1 ;;
esac
""")
    (folder / "docker").chmod(0o755)
    built = builds.run(PATH=str(folder))
    assert built.code == 1
    assert built.error.startswith("this docker client, 26.1.5, cannot build: it has no buildx. Install it: ")


def test_a_client_with_buildx_is_taken(tmp_path: Path, builds: Builds) -> None:
    """Whichever is first on PATH. What it makes is one plain image: SageMaker takes no index of images."""
    folder = commands(tmp_path / "bin")
    able = next(path for path in which_all("docker") if client_version(path) < 23 or has_buildx(path))
    (folder / "docker").write_text(f"""#!/bin/bash
case "$*" in
    "version --format {{{{.Client.Version}}}}") echo 28.5.1 ;;
    "buildx version") echo github.com/docker/buildx v0.29.1 ;;
    "context show") echo default ;;
    build*) env >{tmp_path}/env; exec {able} "$@" ;;
    *) exec {able} "$@" ;;
esac
""")
    (folder / "docker").chmod(0o755)
    builds.makes(PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
    env = (tmp_path / "env").read_text().splitlines()
    assert {"BUILDX_BUILDER=default", "BUILDX_NO_DEFAULT_ATTESTATIONS=1", "DOCKER_BUILDKIT=1"} <= set(env)


def test_a_base_that_cannot_be_pulled(builds: Builds) -> None:
    built = builds.run(BASE_IMAGE="127.0.0.1:1/debian:none")
    assert built.code == 1
    assert built.error.startswith("the base image 127.0.0.1:1/debian:none is not here and cannot be pulled. ")
    assert "refused" in built.error, "the engine's own words"
    assert "'make base'" in built.error


def test_a_lock_that_does_not_match(tmp_path: Path, builds: Builds) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    change(tree / LOCK, r"^retrying==.*\n( +--hash.*\n)+", lambda entry: re.sub(r"[0-9a-f]{64}", "0" * 64, entry[0]))
    built = builds.run(tree)
    assert built.code == 1
    assert built.error.startswith("a file is not the one of requirements/cpu.lock"), built.output[-3000:]
    assert "retrying" in built.error and "make lock" in built.error


def test_a_package_that_the_index_has_not(tmp_path: Path, builds: Builds) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    change(tree / LOCK, r"^retrying==\S+", "retrying==99.0")
    built = builds.run(tree)
    assert built.code == 1
    assert built.error.startswith("the index has not every file of requirements/cpu.lock. "), built.output[-3000:]
    assert "retrying" in built.error and "PIP_INDEX_URL" in built.error


def test_no_space(tmp_path: Path, builds: Builds) -> None:
    """A step of the build fills a real file system: the 64 MB that the engine gives a step at /dev/shm."""
    tree = copy_of_the_tree(tmp_path / "tree")
    (tree / "image" / "install-locked").write_text("#!/bin/sh\nhead -c 200M /dev/zero >/dev/shm/full\n")
    built = builds.run(tree)
    assert built.code == 1
    assert built.error.startswith("the engine's disk is full. "), built.output[-3000:]
    assert "'docker system df'" in built.error


def test_an_index_that_is_not_reached(tmp_path: Path, builds: Builds) -> None:
    """Its address, which may hold a password, is not shown."""
    tree = copy_of_the_tree(tmp_path / "tree")
    change(
        tree / "image" / "install-locked", r"UV_HTTP_TIMEOUT=180", "UV_HTTP_TIMEOUT=5 UV_HTTP_RETRIES=0 UV_NO_CACHE=1"
    )
    built = builds.run(tree, PIP_INDEX_URL="https://somebody:hunter2@127.0.0.1:9/simple")
    assert built.code == 1
    assert built.error.startswith("the build cannot reach what it installs from. "), built.output[-3000:]
    assert "hunter2" not in built.output


def test_a_base_with_another_python(tmp_path: Path, builds: Builds) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    change(tree / "image" / "install-locked", r"\(3, 11\), \(3, 12\)", "(3, 1), (3, 2)")
    built = builds.run(tree)
    assert built.code == 1
    assert built.error.startswith("BASE_IMAGE has Python 3."), built.output[-3000:]
    assert built.error.endswith("and the locks are for 3.11 and 3.12. Use a Debian 12 or Ubuntu 24.04")
