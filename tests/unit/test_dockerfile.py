"""The Dockerfile and image/install-efa, read as text: what builds elsewhere rely on. And the latter's download, run."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import itertools
import os
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT

INSTALL_EFA = ROOT / "image" / "install-efa"


def instructions() -> list[str]:
    """Of the Dockerfile, each on one line, without comments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    return [line for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines() if line.strip()]


def stages() -> dict[str, str]:
    """Of every named stage, what it is made from."""
    found = (re.fullmatch(r"FROM (\S+) AS (\S+)", line) for line in instructions())
    return {match[2]: match[1] for match in found if match}


@pytest.mark.parametrize(("variant", "compiler", "efa"), [*itertools.product(("cpu", "cuda"), "01", "01")])
def test_every_combination_of_the_arguments_leads_to_the_base(variant: str, compiler: str, efa: str) -> None:
    given = {"VARIANT": variant, "COMPILER": compiler, "EFA": efa}
    stage, way = "runtime", []
    while stage != "${BASE_IMAGE}":
        stage = re.sub(r"\$\{(\w+)\}", lambda name: given.get(name[1], name[0]), stages()[stage])
        way.append(stage)
    assert way == [f"variant-{variant}", f"efa-{efa}", f"compiler-{compiler}", "python-base", "${BASE_IMAGE}"]


def test_the_oldest_buildkit_understands_it() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"(?im)^# *syntax *=", text)
    for line in instructions():
        assert "<<" not in line
        assert not re.match(r"(COPY|ADD) .*--(link|parents|checksum|exclude)", line)
        assert "--start-interval" not in line


def test_what_is_copied_is_let_in_by_dockerignore() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in instructions():
        words = line.split()
        if words[0] != "COPY" or any(word.startswith("--from") for word in words):
            continue
        for source in words[1:-1]:
            name = source.replace("${VARIANT}", "cuda").rstrip("*")
            parts = [pattern.rstrip("*").removesuffix("*.lock") for pattern in allowed]
            assert any(name == part or name.startswith(part) for part in parts), f"{source} is not let in"


def test_what_is_installed_leaves_no_lists_behind() -> None:
    builder = False
    for line in instructions():
        if line.startswith("FROM "):
            builder = line.endswith((" AS builder", " AS app"))
        if "apt-get install" in line:
            assert "--no-install-recommends" in line
            assert builder or "rm -rf /var/lib/apt/lists/*" in line
            assert builder or "-perm /6000" in line, "what it brought may have setuid bits"


def test_the_image_starts_train_itself() -> None:
    lines = instructions()
    assert 'CMD ["train"]' in lines
    assert "STOPSIGNAL SIGTERM" in lines
    assert not [line for line in lines if line.startswith(("ENTRYPOINT", "USER", "VOLUME"))]
    assert not [line for line in lines if "/opt/ml" in line]


def test_the_cuda_variant_asks_for_what_it_needs_of_the_host() -> None:
    (line,) = [line for line in instructions() if "NVIDIA_DRIVER_CAPABILITIES" in line]
    assert line == "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    locked = (ROOT / "requirements" / "cuda.lock").read_text()
    major = re.search(r"^cuda-toolkit==(\d+)\.", locked, re.MULTILINE)
    assert major is not None
    base = re.search(r"default_base=nvidia/cuda:(\d+)\.\d+\.\d+-base-ubuntu24\.04", (ROOT / "image/build").read_text())
    assert base is not None
    assert base[1] == major[1], "its cuda-compat has to serve the CUDA that torch is built for"
    (link,) = [line for line in instructions() if "/usr/lib/libcudart.so" in line]
    assert f"nvidia/cu{major[1]}/lib/libcudart.so.{major[1]} " in link.replace('"', " ")


def test_efa_is_refused_for_the_cpu_variant() -> None:
    env = {**os.environ, "VARIANT": "cpu", "EFA": "1"}
    done = subprocess.run([ROOT / "image/build"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: EFA=1 with VARIANT=cpu. EFA is for VARIANT=cuda; leave it out\n"


def test_the_efa_installer_is_pinned_and_told_to_bring_no_more_than_libraries() -> None:
    text = INSTALL_EFA.read_text()
    assert re.search(r"^version=\d+\.\d+\.\d+$", text, re.MULTILINE)
    assert re.search(r"^sha256=\$\{EFA_SHA256:-[0-9a-f]{64}\}$", text, re.MULTILINE)
    assert "https://efa-installer.amazonaws.com/aws-efa-installer-$version.tar.gz" in text
    (call,) = [line for line in text.splitlines() if "./efa_installer.sh" in line]
    for option in ("--skip-kmod", "--skip-limit-conf", "--skip-mpi", "--no-verify"):
        assert option in call
    assert text.index("sha256sum") < text.index("tar -x") < text.index("./efa_installer.sh"), "checked before it is run"
    assert "ssh-keygen" not in text


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def install_efa(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "tmp").mkdir(exist_ok=True)
    given = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / "tmp"), **env}
    return subprocess.run([INSTALL_EFA], env=given, capture_output=True, text=True, timeout=60, check=False)


def test_another_efa_installer_than_the_pinned_one_is_not_run(tmp_path: Path) -> None:
    served = tmp_path / "served"
    (served / "aws-efa-installer").mkdir(parents=True)
    script = served / "aws-efa-installer" / "efa_installer.sh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    script.chmod(0o755)
    with tarfile.open(served / "it.tar.gz", "w:gz") as archive:
        archive.add(script.parent, "aws-efa-installer")
    got = hashlib.sha256((served / "it.tar.gz").read_bytes()).hexdigest()
    with serving(served) as address:
        done = install_efa(tmp_path, EFA_URL=f"{address}/it.tar.gz")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the EFA installer of {address}/it.tar.gz is not the one that is pinned. ")
    assert f"Its SHA-256 is {got}, not cf2e9281" in done.stderr
    assert "EFA_URL and EFA_SHA256 together" in done.stderr
    assert not (tmp_path / "was-run").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_efa_installer_that_is_not_there_is_said(tmp_path: Path) -> None:
    with serving(tmp_path) as address:
        done = install_efa(tmp_path, EFA_URL=f"{address}/absent.tar.gz")
    assert done.returncode == 1
    assert f"cannot be taken from {address}/absent.tar.gz. urllib.error.HTTPError: HTTP Error 404" in done.stderr
    assert "name a copy by EFA_URL" in done.stderr
