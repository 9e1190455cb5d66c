"""What a start needs and what it does not: bytecode, no compiler, its own Python; and how healthy it is said to be."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.containers import Container, Containers
from image.job import ContainerJob
from support import wait_until

PROGRAM = """
    import moorage
    run = moorage.start()
    print("trained on", run.device, flush=True)
    run.finish()
"""

# --- bytecode

COMPILED = """
import json, sys
compiled = []
sys.addaudithook(lambda event, values: event == "compile" and compiled.append(values[1]))
import torch, torch.distributed.checkpoint, torch.distributed.fsdp, moorage, moorage.training.start
files = [module.__cached__ for module in sys.modules.values() if getattr(module, "__cached__", None)]
print(json.dumps({"compiled": [name for name in map(str, compiled) if name.startswith("/")], "loaded": len(files)}))
"""


def test_nothing_is_compiled_at_import(containers: Containers) -> None:
    """On a root that cannot be written, each process would compile torch anew."""
    found = json.loads(containers.run("python3", "-c", COMPILED, network="none", read_only=True))
    assert found["loaded"] > 1000
    assert found["compiled"] == [], "these were compiled from their source"


def test_import_leaves_the_file_system_as_it_was(containers: Containers) -> None:
    """All bytecode is there and valid already: else Python would write it now."""
    container = containers.start("python3", "-c", "import torch, moorage.training.start", network="none")
    assert container.wait() == 0, container.logs()
    changed = [change["Path"] for change in container.engine.diff() or []]
    assert not [path for path in changed if path.startswith(("/opt", "/usr"))]


# --- compilers

RECORDER = """#!/bin/sh
echo "$0 $*" >>/record/calls
exit 1
"""
FIND = """
for name in "$0" "$@"; do
    path=$(command -v $name) && readlink -f $path
done
ls /usr/lib/gcc/*/*/cc1plus 2>/dev/null; true
"""
COMPILERS = ("gcc", "g++", "cc", "c++", "cc1plus", "as", "ld")


@pytest.fixture
def no_compiler(tmp_path: Path, containers: Containers) -> Iterator[dict[Path | str, str]]:
    """Mounts that put, over every compiler of the image, something that only writes down that it was called."""
    there = set(containers.run("sh", "-c", FIND, *COMPILERS).split())
    record = tmp_path / "record"
    record.mkdir()
    # One file for each: the engine takes a folder once.
    mounts: dict[Path | str, str] = {record: "/record"}
    for number, path in enumerate(sorted(there)):
        copy = tmp_path / f"recorder{number}"
        copy.write_text(RECORDER)
        copy.chmod(0o755)
        mounts[copy] = path
    yield mounts


def test_no_compiler_is_called(tmp_path: Path, containers: Containers, no_compiler: dict[Path | str, str]) -> None:
    calls = tmp_path / "record" / "calls"
    if len(no_compiler) > 1:
        containers.start("g++", "--version", mounts=no_compiler, network="none").wait()
        assert "g++" in calls.read_text(), "a call would be seen"
        calls.unlink()
    containers.run("train", "--help", mounts=no_compiler, network="none")
    job = ContainerJob(containers, tmp_path / "job", ranks=2).program(PROGRAM)
    (host,) = job.finishes(mounts=no_compiler)
    assert "trained on cpu" in host.logs()
    assert not calls.exists(), calls.read_text()


TORCH_COMPILE = """
import time, torch
started = time.perf_counter()
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
x = torch.randn(4, 8)
torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))
print(f"compiled in {time.perf_counter() - started:.1f} s")
"""


def test_torch_compile(containers: Containers) -> None:
    """What the compiler is in the image for. It writes to /tmp only."""
    if containers.start("sh", "-c", "command -v g++", network="none").wait():
        pytest.skip("the image was built with COMPILER=0")
    said = containers.run(
        "python3", "-c", TORCH_COMPILE, network="none", read_only=True, tmpfs={"/tmp": "exec"}, timeout=240
    )
    print(said)


# --- an image made of this one


def test_another_python_that_is_first_changes_nothing(tmp_path: Path, containers: Containers) -> None:
    """`FROM moorage` with a Python of one's own before ours in PATH: commands and ranks keep to theirs."""
    dockerfile = f"""
        FROM {containers.image}
        RUN mkdir /other && printf '#!/bin/sh\\nexit 9\\n' >/other/python3 && chmod 755 /other/python3 && \\
            ln -s python3 /other/python
        ENV PATH=/other:$PATH
    """
    image, _ = containers.client.images.build(fileobj=io.BytesIO(dockerfile.encode()), rm=True)
    try:
        assert containers.start("python3", image=image.id).wait() == 9
        (host,) = ContainerJob(containers, tmp_path, ranks=2).program(PROGRAM).finishes(image=image.id)
        assert host.logs().count("trained on cpu") == 2
        assert "moorage" in containers.run("moorage", "--help", image=image.id)
        host = containers.start("sleep", "60", image=image.id)
        host.execute("healthcheck")
    finally:
        containers.remove()
        containers.client.images.remove(image.id)


# --- health

SECOND = 1_000_000_000

SERVE = """#!/opt/venv/bin/python3
import http.server, os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(pathlib.Path("/served/status").read_text()) if self.path == "/ping" else 404)
        self.end_headers()
http.server.ThreadingHTTPServer(("", int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"))), Handler).serve_forever()
"""


def health(container: Container) -> str:
    container.engine.reload()
    return str(container.engine.attrs["State"]["Health"]["Status"])


def becomes(container: Container, status: str) -> None:
    wait_until(lambda: health(container) == status, timeout=60, what=f"{status!r} of {container.name}")


def often() -> dict[str, object]:
    """The image's own check, asked every second in place of every half minute."""
    return {"interval": SECOND, "timeout": 10 * SECOND, "retries": 1}


def test_a_container_that_trains_is_healthy(tmp_path: Path, containers: Containers) -> None:
    job = ContainerJob(containers, tmp_path).program("import time\nprint('running', flush=True)\ntime.sleep(600)")
    (host,) = job.start(healthcheck=often())
    host.wait_for("running")
    becomes(host, "healthy")


@pytest.mark.parametrize("env", [{}, {"SAGEMAKER_BIND_TO_PORT": "9123", "http_proxy": "http://127.0.0.1:1"}])
def test_a_server_is_as_healthy_as_its_ping(tmp_path: Path, containers: Containers, env: dict[str, str]) -> None:
    (tmp_path / "serve").write_text(SERVE)
    (tmp_path / "serve").chmod(0o755)
    status = tmp_path / "status"
    status.write_text("200")
    server = containers.start("/served/serve", mounts={tmp_path: "/served"}, env=env, healthcheck=often())
    becomes(server, "healthy")
    status.write_text("503")
    becomes(server, "unhealthy")
    server.engine.reload()
    said = server.engine.attrs["State"]["Health"]["Log"][-1]["Output"]
    assert f"/ping on port {env.get('SAGEMAKER_BIND_TO_PORT', '8080')}: HTTP 503" in said
    status.write_text("200")
    becomes(server, "healthy")


def test_a_server_that_does_not_answer_is_unhealthy(tmp_path: Path, containers: Containers) -> None:
    (tmp_path / "serve").write_text("#!/opt/venv/bin/python3\nimport time\ntime.sleep(600)\n")
    (tmp_path / "serve").chmod(0o755)
    server = containers.start("/served/serve", mounts={tmp_path: "/served"}, healthcheck=often())
    becomes(server, "unhealthy")
    server.engine.reload()
    assert "Connection refused" in server.engine.attrs["State"]["Health"]["Log"][-1]["Output"]
