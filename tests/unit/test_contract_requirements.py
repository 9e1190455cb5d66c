"""requirements.txt, by the real pip, into an environment of the test's own."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pip
import pytest

from moorage.contract.requirements import install, torch_version
from moorage.errors import RequirementsError
from wheels import make_wheel

TORCH = importlib.metadata.version("torch")


class Venv:
    """An environment that sees pip of the one that runs the tests, and takes installs for itself."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = str(folder / "venv/bin/python")
        self.site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
        (self.site / "pip").symlink_to(Path(pip.__file__).parent)
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        self.code = folder / "code"
        self.code.mkdir()
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_RETRIES": "0",
            "PIP_NO_COMPILE": "1",
        }

    def see_torch(self) -> None:
        """And all else that the tests' environment has, which makes pip slower."""
        (self.site / "outer.pth").write_text(sysconfig.get_path("purelib"))

    def wheel(self, name: str, version: str = "1.0", requires: str = "") -> Path:
        return make_wheel(self.wheels, name, version, requires)

    def install(self, *lines: str) -> bool:
        (self.code / "requirements.txt").write_text("\n".join(lines))
        return install(self.code, self.env, python=self.python)

    def version(self, module: str) -> str:
        command = [self.python, "-c", f"import {module}; print({module}.version)"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    return Venv(tmp_path)


def test_packages_are_installed_once(venv: Venv, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "moorage")
    venv.wheel("harbour", "1.0")
    venv.wheel("harbour", "2.0")
    more = venv.code / "more.txt"
    more.write_text("harbour==1.0  # for mooring")
    assert venv.install("-r more.txt", "")
    assert venv.version("harbour") == "1.0"
    assert "pip: Successfully installed harbour-1.0" in caplog.text
    assert not venv.install("-r more.txt"), "nothing changed"
    more.write_text("harbour==2.0")
    assert venv.install("-r more.txt"), "an included file changed"
    for path in venv.site.glob("harbour*"):
        subprocess.run(["rm", "-r", path], check=True)
    assert venv.install("-r more.txt"), "the packages changed"
    assert venv.version("harbour") == "2.0"


def test_a_local_package_is_never_taken_for_unchanged(venv: Venv) -> None:
    wheel = venv.wheel("harbour")
    for _ in range(2):
        assert venv.install(str(wheel))


@pytest.mark.parametrize("lines", [[], ["# only words", "", "   "]])
def test_nothing_to_install(venv: Venv, lines: list[str]) -> None:
    assert not venv.install(*lines)
    (venv.code / "requirements.txt").unlink()
    assert not install(venv.code, venv.env, python="/no/python")


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.1.0",
        "torch<2",
        "Torch == 1.*",
        "torch==2.1.0 \\\n    --hash=sha256:abc",
        "torch[opt]<2 ; python_version > '3'",
        "torch @ https://user:hunter22@example.org/torch-9.9-py3-none-any.whl",
        "https://example.org/torch-2.1.0-cp311-cp311-linux_x86_64.whl",
        "./torch-2.1.0-cp311-cp311-linux_x86_64.whl",
    ],
)
def test_a_line_that_would_change_torch_is_named(venv: Venv, line: str) -> None:
    with pytest.raises(RequirementsError) as caught:
        venv.install("numpy", line)
    message = str(caught.value)
    assert f"requirements.txt, line {2 + line.count(chr(10))}: " in message
    assert f"would change torch, which is {TORCH} here" in message
    assert "hunter22" not in message


def test_so_is_one_in_an_included_file(venv: Venv) -> None:
    (venv.code / "more.txt").write_text("\ntorch<2\n-r requirements.txt")
    with pytest.raises(RequirementsError, match=r"more\.txt, line 2: 'torch<2'"):
        venv.install("-rmore.txt")


def test_lines_that_fit_torch_are_accepted(venv: Venv) -> None:
    venv.see_torch()
    public = TORCH.partition("+")[0]
    assert venv.install("torch", "torch>=2", f"torch=={TORCH}", f"torch=={public}", "torch<2; python_version < '3'")
    assert not list(venv.site.glob("torch*"))


def test_a_package_that_needs_another_torch(venv: Venv) -> None:
    venv.wheel("harbour", requires="torch<2")
    venv.wheel("torch", "1.0")
    with pytest.raises(RequirementsError) as caught:
        venv.install("harbour")
    assert f"another torch than {TORCH}" in str(caught.value)
    assert "harbour 1.0 depends on torch<2" in str(caught.value)
    assert not list(venv.site.glob("harbour*"))


def test_pips_own_words_and_no_stamp_after_a_failure(venv: Venv, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "moorage")
    with pytest.raises(RequirementsError) as caught:
        venv.install("no-such-package")
    assert (venv.site / "moorage-requirements").read_text() == ""
    message = str(caught.value)
    assert "pip ended with code 1" in message
    assert "No matching distribution found for no-such-package" in message
    assert "pip: ERROR: No matching distribution" in caplog.text


def test_without_a_network_the_error_says_what_to_do(venv: Venv) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        del venv.env["PIP_NO_INDEX"]
        venv.env["PIP_RETRIES"] = "1"
        venv.env["PIP_INDEX_URL"] = f"http://user:hunter22@127.0.0.1:{held.getsockname()[1]}/simple"
        with pytest.raises(RequirementsError) as caught:
            venv.install("no-such-package")
    assert "network isolation" in str(caught.value)
    assert "PIP_FIND_LINKS" in str(caught.value)


def test_a_password_in_an_index_is_never_logged(venv: Venv, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "moorage")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        del venv.env["PIP_NO_INDEX"]
        venv.env["PIP_EXTRA_INDEX_URL"] = f"http://user:hunter22@127.0.0.1:{port}/a"
        with pytest.raises(RequirementsError) as caught:
            venv.install(f"--index-url http://hunter33token@127.0.0.1:{port}/b", "no-package-of-hunter22")
    for secret in ("hunter22", "hunter33"):
        assert secret not in caplog.text + str(caught.value)


def test_an_environment_without_pip(venv: Venv) -> None:
    (venv.site / "pip").unlink()
    with pytest.raises(RequirementsError, match="install pip into the image"):
        venv.install("harbour")


def test_a_file_that_is_not_text(venv: Venv) -> None:
    (venv.code / "requirements.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(RequirementsError, match="UTF-8"):
        install(venv.code, venv.env, python=venv.python)


def test_packages_that_cannot_be_stamped_are_installed_all_the_same(
    venv: Venv, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "moorage")
    venv.wheel("harbour")
    (venv.site / "moorage-requirements").mkdir()
    assert venv.install("harbour")
    assert "installed anew at each start" in caplog.text


def test_torch_is_not_imported_for_its_version() -> None:
    assert torch_version() == TORCH
    program = (
        "import sys; from moorage.contract.requirements import torch_version as t; t(); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


class DeafIndex:
    """A package index that takes requests and never answers. `gone` is set when a client has left again."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/simple"
        self.asked, self.gone = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        self.socket.settimeout(30)
        client, _ = self.socket.accept()
        with client:
            client.settimeout(30)
            while client.recv(4096):
                self.asked.set()
        self.gone.set()


@pytest.fixture
def index() -> Iterator[DeafIndex]:
    index = DeafIndex()
    yield index
    index.thread.join()
    index.socket.close()


@pytest.mark.parametrize("stop", ["signal handler that raises", "group killed"])
def test_a_stop_ends_pip_too(venv: Venv, index: DeafIndex, stop: str) -> None:
    del venv.env["PIP_NO_INDEX"]
    venv.env |= {"PIP_INDEX_URL": index.url, "PIP_DEFAULT_TIMEOUT": "600"}
    (venv.code / "requirements.txt").write_text("no-such-package")
    program = (
        "import signal, sys; from pathlib import Path; from moorage.contract.requirements import install\n"
        "def stop(number, frame): raise SystemExit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"install(Path({str(venv.code)!r}), {venv.env!r}, python={venv.python!r})"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, start_new_session=True) as process:
        assert index.asked.wait(20), "pip never asked"
        if stop == "group killed":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == (-signal.SIGKILL if stop == "group killed" else 143)
        assert index.gone.wait(10), "pip is still waiting for its index"
    assert (venv.site / "moorage-requirements").read_text() == ""
