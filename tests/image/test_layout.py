"""What is in the image, and what is not."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moorage
from image.containers import Containers
from image.contents import Entry, contents
from support import ROOT

BUDGET = 1.25e9
"""Bytes of the CPU variant, unpacked, with the compiler."""

VENV = "opt/venv/lib/python"
OURS = "opt/moorage/lib/"

Entries = dict[str, Entry]


@pytest.fixture(scope="module")
def entries() -> Entries:
    with Containers.opened() as containers:
        return contents(containers)


def attributes(containers: Containers) -> dict[str, Any]:
    return containers.client.images.get(containers.image).attrs


# --- what the engine and the platform are told


def test_labels(containers: Containers) -> None:
    labels = attributes(containers)["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "moorage"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == moorage.__version__
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["org.opencontainers.image.revision"])
    assert "cpu" in labels["org.opencontainers.image.description"]
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"


def test_what_it_starts(containers: Containers) -> None:
    """No entry point, no shell before `train`; root, since the platform's folders are root's."""
    config = attributes(containers)["Config"]
    assert config["Cmd"] == ["train"]
    assert not config["Entrypoint"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "healthcheck"]
    assert config["User"] == ""
    assert not config.get("Volumes") and not config.get("ExposedPorts")


def test_environment_is_a_path_and_an_encoding(containers: Containers) -> None:
    """No more: PYTHONSAFEPATH would break programs with modules beside them, OMP_NUM_THREADS is train's to decide."""
    variables = dict(line.split("=", 1) for line in attributes(containers)["Config"]["Env"])
    assert variables.keys() == {"PATH", "LANG"}
    assert variables["PATH"].startswith("/opt/moorage/bin:/opt/venv/bin:")


def test_one_plain_linux_image(containers: Containers) -> None:
    found = attributes(containers)
    assert (found["Os"], found["Architecture"]) == ("linux", "amd64")


def test_size(containers: Containers) -> None:
    size = attributes(containers)["Size"]
    assert size <= BUDGET, f"{size / 1e9:.2f} GB; `make size` says of what"


# --- where things are


def test_nothing_is_where_the_platform_mounts(entries: Entries) -> None:
    assert not [name for name in entries if name.startswith("opt/ml")]
    assert {name.split("/")[1] for name in entries if name.startswith("opt/")} - {"amazon"} == {"moorage", "venv"}


def test_commands_are_executable_and_name_their_interpreter(entries: Entries) -> None:
    """By its path: an image made FROM this one may put another Python first."""
    commands = [entry for name, entry in entries.items() if name.startswith("opt/moorage/bin/")]
    assert {"train", "moorage", "healthcheck"} <= {Path(command.name).name for command in commands}
    for command in commands:
        assert command.mode == 0o755, command.name
        assert command.content.startswith(b"#!/opt/venv/bin/python3\n"), command.name
    assert f"{OURS}moorage/__init__.py" in entries
    # sagemaker-training brings a `train` of its own, which would be found if somebody changed PATH.
    assert "opt/venv/bin/train" not in entries


def test_installed_metadata_says_the_version(containers: Containers) -> None:
    program = (
        "import importlib.metadata as m, moorage; print(m.version('moorage'), moorage.__version__, moorage.__file__)"
    )
    assert containers.run("python3", "-c", program).split() == [
        moorage.__version__, moorage.__version__, "/opt/moorage/lib/moorage/__init__.py",
    ]  # fmt: skip


def test_what_is_installed_fits_together(containers: Containers) -> None:
    assert "No broken requirements found" in containers.run("python3", "-m", "pip", "check", network="none")


# --- bytecode


def bytecode_of(source: str, python: str) -> str:
    folder, _, name = source.rpartition("/")
    return f"{folder}/__pycache__/{name.removesuffix('.py')}.{python}.pyc"


def test_every_source_has_valid_bytecode(entries: Entries) -> None:
    """Python takes bytecode for valid when it names the source's time and size. PEP 552: flags 0 is that kind."""
    (python,) = {
        found[1] for name in entries if (found := re.search(r"/__pycache__/__init__\.(cpython-\d+)\.pyc$", name))
    }
    sources = [
        entry
        for name, entry in entries.items()
        if name.startswith((VENV, OURS)) and name.endswith(".py") and entry.is_file
    ]
    assert len(sources) > 5000
    for source in sources:
        compiled = entries.get(bytecode_of(source.name, python))
        assert compiled is not None, f"{source.name} has none"
        flags, mtime, size = (int.from_bytes(compiled.content[at : at + 4], "little") for at in (4, 8, 12))
        assert (flags, mtime, size) == (0, source.mtime, source.size), source.name


# --- what must not be there

LEFTOVER = re.compile(
    r"(tmp|var/tmp|build|wheels|run/secrets|venv|app)/.+"
    r"|root/(?!\.bashrc$|\.profile$).+"
    r"|(home|srv|mnt|media)/.+"
    r"|var/lib/apt/lists/.+(?<!partial)"
    r"|var/cache/apt/(.*\.bin|archives/.*\.deb)"
    r"|var/log/(apt|dpkg\.log|bootstrap\.log|alternatives\.log).*"
    r"|.*/(pip\.conf|uv\.toml|uv_cache\.json|direct_url\.json|\.netrc|\.pypirc|id_[a-z0-9]+|authorized_keys)"
    r"|.*/(\.git|\.aws|\.ssh|\.docker|\.cache|sshd|\.pytest_cache)(/.*)?"
    r"|.*\.(whl|rej|orig)"
    r"|opt/(venv|moorage)/(.*/)?(\.lock|tests)"
)
_VENDORED = "setuptools/_vendor/.lock"


def test_nothing_is_left_over(entries: Entries) -> None:
    """Of the build: temporary files, caches, lists, logs, settings of pip; of packages: their tests."""
    assert not [name for name in entries if LEFTOVER.fullmatch(name) and not name.endswith(_VENDORED)]


def test_nobody_gains_rights(entries: Entries) -> None:
    files = [entry for entry in entries.values() if entry.is_file]
    assert not [entry.name for entry in files if entry.mode & 0o6000]
    assert not [entry.name for entry in files if entry.mode & 0o002]
    open_folders = [e.name for e in entries.values() if not e.is_file and not e.is_link and e.mode & 0o002]
    assert all(entries[name].mode & 0o1000 for name in open_folders), "a folder open to all is sticky, as /tmp"


PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\\?[rn\s]+[A-Za-z0-9+/=\s\\]{100,}")
TOKEN = re.compile(
    rb"\b(AKIA|ASIA)(?![A-Z0-9]{9}EXAMPLE)[0-9A-Z]{16}\b|\bghp_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"
    rb"|\bhf_[A-Za-z0-9]{30,}|\bpypi-[A-Za-z0-9_-]{40,}|\bxox[abp]-[0-9A-Za-z-]{20,}"
)


_MARKS = (b"PRIVATE KEY", b"AKIA", b"ASIA", b"ghp_", b"github_pat_", b"hf_", b"pypi-", b"xox")


def secrets(content: bytes) -> bool:
    likely = any(mark in content for mark in _MARKS)
    return likely and bool(PRIVATE_KEY.search(content) or TOKEN.search(content))


def test_no_secrets(entries: Entries) -> None:
    assert not [entry.name for entry in entries.values() if secrets(entry.content)]


def test_the_search_would_find_secrets() -> None:
    assert secrets(b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + b"b3BlbnNzaC1rZXkt" * 8)
    assert secrets(b"aws_access_key_id = AKIA" + b"ABCD" * 4)
    assert not secrets(b"AKIAIOSFODNN7EXAMPLE")
    assert LEFTOVER.fullmatch("root/.cache/uv/x") and LEFTOVER.fullmatch("etc/pip.conf")
    assert LEFTOVER.fullmatch("opt/venv/lib/python3.11/site-packages/x/tests")


def of_this_machine() -> Iterator[str]:
    """What a build here knew and the image must not: its index, its folders, its name."""
    for name in (
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "UV_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "PIP_FIND_LINKS",
        "WHEELS",
    ):
        yield from os.environ.get(name, "").split()
    yield str(ROOT)
    if len(socket.gethostname()) > 5:
        yield socket.gethostname()


def test_nothing_tells_where_it_was_built(entries: Entries) -> None:
    for word in of_this_machine():
        wanted = word.encode()
        holding = [entry.name for entry in entries.values() if wanted in entry.content]
        assert not holding, f"{len(holding)} files hold a setting of this machine, such as {holding[0]}"


def test_it_trusts_whom_debian_trusts(entries: Entries) -> None:
    """And not whom the build was told to trust by PIP_CERT."""
    bundle = entries["etc/ssl/certs/ca-certificates.crt"].content
    debian = [entry for entry in entries.values() if re.fullmatch(r"usr/share/ca-certificates/.*\.crt", entry.name)]
    assert bundle.count(b"BEGIN CERTIFICATE") == len(debian)
    assert all(entry.content.strip() in bundle for entry in debian)
    assert not [name for name in entries if name.startswith("usr/local/share/ca-certificates/")]


def test_history_holds_no_secret(containers: Containers) -> None:
    history = "\n".join(step["CreatedBy"] for step in containers.client.images.get(containers.image).history())
    for word in of_this_machine():
        assert word not in history
    assert "://" not in history and not TOKEN.search(history.encode())
