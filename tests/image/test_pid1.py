"""`train` as PID 1 of a container: what `docker stop`, orphans, long lines and failures make of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from image.containers import Container, Containers
from image.job import DEADLINE, ContainerJob, last_step, left_alone, same
from support import wait_until


def test_docker_stop_saves_and_the_next_start_loses_nothing(tmp_path: Path, containers: Containers) -> None:
    """Stopped twice, the second time by two signals; started again as the same container, then as a new one."""
    job = ContainerJob(containers, tmp_path, ranks=2).digits(moorage_strategy="ddp")
    (host,) = job.start()
    host.wait_for("#metric step=10 ")
    seconds = host.stop(30)
    assert host.wait() == 143, host.logs()
    print(f"docker stop, with a save: {seconds:.1f} s")
    assert seconds < 20, "it left by itself, long before the engine's SIGKILL"
    assert job.failure() is None
    stopped = job.events("stopped")[-1]["step"]
    assert stopped >= 10

    host.start_again()
    wait_until(lambda: last_step(host) > stopped, timeout=DEADLINE, what="a step of the second start")
    host.signal("SIGTERM")
    host.signal("SIGTERM")
    assert host.wait() == 143, host.logs()
    assert "again: it is stopping already" in host.logs()
    assert job.events("stopped")[-1]["step"] > stopped
    assert job.failure() is None

    job.finishes()
    assert len(job.events("resume")) == 2
    job.check_nothing_lost()
    assert same(job.weights(), left_alone("ddp"))


ORPHANS = """
    import os, subprocess, sys, time
    # Children that leave a grandchild behind, in their session and in one of its own: all come to PID 1.
    leave = "import os, subprocess; os.fork() and os._exit(0); {}; subprocess.Popen(['sleep', '0.2'])"
    for number in range(20):
        subprocess.run([sys.executable, "-S", "-c", leave.format("os.setsid()" if number % 2 else "0")])
    subprocess.run([sys.executable, "-S", "-c", leave.format("os.setsid()").replace("0.2", "600")])
    print("left behind", flush=True)
    time.sleep(600)
"""

PROCESSES = """
import pathlib
for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    pid, _, rest = stat.read_text().partition(" (")
    name, _, rest = rest.rpartition(") ")
    print(pid, rest.split()[0], name)
"""


def processes(host: Container) -> list[tuple[int, str, str]]:
    """pid, state and name of all there are in the container, but for the one that looks."""
    lines = host.execute("python3", "-S", "-c", PROCESSES).splitlines()
    return [(int(pid), state, name) for pid, state, name in (line.split(" ", 2) for line in lines) if state != "R"]


def test_orphans_are_reaped_and_train_is_pid_1_itself(tmp_path: Path, containers: Containers) -> None:
    job = ContainerJob(containers, tmp_path).program(ORPHANS)
    (host,) = job.start()
    host.wait_for("left behind")
    command = host.execute("cat", "/proc/1/cmdline").split("\0")
    assert command[0].endswith("python3") and command[1].endswith("/train")

    def names() -> list[str]:
        return sorted(name for _, _, name in processes(host))

    # PID 1, the rank, and the one that sleeps on: no zombie, and none of the twenty others.
    wait_until(lambda: names() == ["python3", "sleep", "train"], what="reaping")
    assert host.stop(20) < 15
    assert host.wait() == 143


LINES = """
    import hashlib, os, pathlib, sys, time
    rank, written = os.environ["RANK"], pathlib.Path("/tmp/rank-0-has-written")
    for number in range(400):
        body = f"{rank}-{number}-" * 1500
        sys.stdout.write(f"line {rank} {number} {body} {hashlib.sha256(body.encode()).hexdigest()}\\n")
    print("the last line of", rank, end="", flush=True)
    if rank == "0":
        written.touch()
    else:  # the failure of one stops the other, which must have written by then
        end = time.monotonic() + 30
        while not written.exists() and time.monotonic() < end:
            time.sleep(0.01)
        raise ValueError("größer ☃ " * 5000)
"""


def test_log_lines_are_whole_to_the_last_and_the_failure_file_is_short(tmp_path: Path, containers: Containers) -> None:
    job = ContainerJob(containers, tmp_path, ranks=2).program(LINES)
    (host,) = job.start()
    assert host.wait() == 1, host.logs(stdout=False)
    lines = [line.removeprefix("[algo-1:1] ") for line in host.logs(stderr=False).split("\n")]
    assert lines.pop() == "", "the last one ends in a newline too"
    for rank in "01":
        mine = [line.split(" ") for line in lines if line.startswith(f"line {rank} ")]
        assert [int(words[2]) for words in mine] == list(range(400)), "all of them, in order"
        assert all(hashlib.sha256(body.encode()).hexdigest() == digest for *_, body, digest in mine)
    assert sorted(line for line in lines if not line.startswith("line ")) == [
        "the last line of 0",
        "the last line of 1",
    ]
    assert (job.failure() or "").startswith("rank 1 on algo-1 failed with exit code 1: ValueError: größer ☃")


@pytest.mark.parametrize(("how", "code"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 11)", 139)])
def test_the_exit_code_is_the_programs(tmp_path: Path, containers: Containers, how: str, code: int) -> None:
    job = ContainerJob(containers, tmp_path).program(f"import os\n{how}")
    job.settings["max_restarts"] = 0
    (host,) = job.start()
    assert host.wait() == code, host.logs()
    said = "failed with exit code 7" if code == 7 else "was killed by SIGSEGV"
    assert (job.failure() or "").startswith(f"rank 0 on algo-1 {said}")


SLOW_TO_BUILD = {
    "code/slow/pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n',
    "code/slow/slow.py": "import time\ndef get_requires_for_build_wheel(settings=None):\n    time.sleep(600)\n",
    "code/requirements.txt": "./slow\n",
}


def test_docker_stop_while_requirements_are_installed_ends_at_once(tmp_path: Path, containers: Containers) -> None:
    job = ContainerJob(containers, tmp_path).program("print('started')")
    for name, text in SLOW_TO_BUILD.items():
        job.folders["algo-1"].file(name, text)
    (host,) = job.start(network="none")
    host.wait_for("Getting requirements to build wheel")
    assert host.stop(30) < 10
    assert host.wait() == 143, host.logs()
    assert job.failure() is None
    assert "started" not in host.logs(stderr=False)
