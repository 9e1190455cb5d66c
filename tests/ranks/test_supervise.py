"""One host: what `train` makes of programs that finish, fail, stop, and misbehave."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support import TRAIN, HostProcess, JobFolder, job_settings, run_train, wait_until

WAIT = """
    import os, sys, time
    print("pid", os.environ["RANK"], os.getpid(), flush=True)
    time.sleep(600)
"""

GRACEFUL = """
    import os, signal, sys, time
    def stop(*_):
        print("saving", os.environ["RANK"], flush=True)
        time.sleep(1)
        print("saved", os.environ["RANK"], flush=True)
        sys.exit({code})
    signal.signal(signal.SIGTERM, stop)
    print("ready", os.environ["RANK"], flush=True)
    while True:
        time.sleep(0.1)
"""


def ends(pid: int) -> None:
    wait_until(lambda: gone(pid), what=f"the end of process {pid}")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def pids(lines: list[str]) -> dict[int, int]:
    """By rank, from `pid RANK PID`."""
    return {int(words[-2]): int(words[-1]) for words in map(str.split, lines)}


def test_a_program_that_finishes(tmp_path: Path) -> None:
    program = """
        import os, sys
        names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR"]
        print("ran", *(os.environ[name] for name in names), sys.argv[1:], os.environ["SM_HP_LR"])
    """
    with run_train(tmp_path, program, ranks=2, hyperparameters={"lr": "0.1", "moorage_keep": "3"}) as (host,):
        assert host.ends() == 0, host.report()
    assert sorted(host.lines("ran")) == [
        "[algo-1:1] ran 1 1 2 2 0 127.0.0.1 ['--lr', '0.1'] 0.1",
        "ran 0 0 2 2 0 127.0.0.1 ['--lr', '0.1'] 0.1",
    ]
    assert host.failure is None
    assert [event["event"] for event in host.folder.ledger()] == ["start", "down", "leave"]


def test_the_exit_code_and_the_failure_file_are_those_of_the_rank_that_failed(tmp_path: Path) -> None:
    program = """
        import os, time
        def load():
            raise KeyError("the column 'price' is missing")
        if os.environ["RANK"] == "1":
            load()
        time.sleep(600)
    """
    with run_train(tmp_path, program, ranks=2) as (host,):
        assert host.ends() == 1, host.report()
    assert host.failure is not None
    assert host.failure.startswith(
        "rank 1 on algo-1 failed with exit code 1: KeyError: \"the column 'price' is missing\""
    )
    assert "train.py:4 in load: raise KeyError" in host.failure
    assert "no restart: no progress was made" in host.stderr


@pytest.mark.parametrize(
    ("how", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 11)", 139), ("os._exit(255)", 255)]
)
def test_exit_codes(tmp_path: Path, how: str, code: int) -> None:
    with run_train(tmp_path, f"import os, sys\n{how}", max_restarts=0) as (host,):
        assert host.ends() == code
    assert host.failure is not None and "rank 0 on algo-1" in host.failure


def test_a_stop_waits_for_the_save_and_a_second_sigterm_changes_nothing(tmp_path: Path) -> None:
    with run_train(tmp_path, GRACEFUL.format(code=143), ranks=2) as (host,):
        host.wait_for("ready", times=2)
        host.signal()
        host.wait_for("saving", times=2)
        host.signal()
        host.signal(signal.SIGINT)
        assert host.ends() == 143
    assert host.stdout.count("saving") == host.stdout.count("saved") == 2
    assert host.failure is None
    assert host.folder.ledger()[-1]["code"] == 143


@pytest.mark.parametrize(("own", "code"), [(0, 0), (3, 3)])
def test_a_program_that_stops_in_its_own_way_keeps_its_exit_code(tmp_path: Path, own: int, code: int) -> None:
    with run_train(tmp_path, GRACEFUL.format(code=own), ranks=2) as (host,):
        host.wait_for("ready", times=2)
        host.signal(signal.SIGINT)
        assert host.ends() == code
    assert (host.failure is None) == (code == 0)


def test_a_program_without_a_handler_stops_at_once(tmp_path: Path) -> None:
    with run_train(tmp_path, WAIT, ranks=2) as (host,):
        host.wait_for("pid", times=2)
        host.signal()
        assert host.ends(5) == 143
    assert host.failure is None


def test_a_program_that_ignores_the_stop_is_killed_after_the_grace(tmp_path: Path) -> None:
    program = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(600)
    """
    with run_train(tmp_path, program, grace=1) as (host,):
        host.wait_for("ready")
        host.signal()
        assert host.ends(5) == 137
    assert host.failure is not None and "still running 1 s after SIGTERM: rank 0" in host.failure


def test_sigterm_after_the_ranks_finished_keeps_0(tmp_path: Path) -> None:
    # The rank is gone, and the supervisor waits for its pipe, which a process of another session holds.
    program = """
        import os, subprocess
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        print("pid 0", os.getpid(), flush=True)
    """
    with run_train(tmp_path, program) as (host,):
        host.wait_for("pid 0")
        ends(*pids(host.lines("pid")).values())

        def stop_again() -> bool:
            host.signal()
            return host.process.poll() is not None

        wait_until(stop_again, what="the end")
        assert host.ends() == 0


def test_a_killed_rank_is_restarted_with_the_others(tmp_path: Path) -> None:
    program = """
        import os, time
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        print("pid", attempt, os.environ["MASTER_PORT"], os.environ["RANK"], os.getpid(), flush=True)
        if attempt == "0":
            time.sleep(600)
    """
    with run_train(tmp_path, program, ranks=2) as (host,):
        host.wait_for("pid 0", times=2)
        os.kill(pids(host.lines("pid 0"))[1], signal.SIGKILL)
        assert host.ends() == 0, host.report()
    assert len(host.lines("pid 1")) == 2
    ports = {line.split()[-3] for line in host.lines("pid")}
    assert len(ports) == 2, "each attempt meets at a port of its own"
    assert host.failure is None
    assert [event["event"] for event in host.folder.ledger()].count("start") == 2


def test_the_third_death_at_the_same_place_is_the_last(tmp_path: Path) -> None:
    with run_train(tmp_path, "import os; print('ran', flush=True); os.kill(os.getpid(), 9)") as (host,):
        assert host.ends() == 137
    assert len(host.lines("ran")) == 3
    assert host.failure is not None and "was killed by SIGKILL" in host.failure and "memory" in host.failure


@pytest.mark.parametrize("how", ["progress", "checkpoint"])
def test_progress_earns_a_restart_until_they_are_used_up(tmp_path: Path, how: str) -> None:
    program = f"""
        import os
        from pathlib import Path
        from moorage.contract.progress import Progress
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        if {how!r} == "progress":
            Progress.create(Path(os.environ["MOORAGE_RUN_FOLDER"]), 0).update(10 + attempt)
        else:
            (Path(os.environ["SAGEMAKER_BASE_DIR"]) / "checkpoints").mkdir(exist_ok=True)
            (Path(os.environ["SAGEMAKER_BASE_DIR"]) / "checkpoints" / f"step-{{attempt}}").touch()
        print("ran", flush=True)
        raise RuntimeError("a flaky file system")
    """
    with run_train(tmp_path, program, max_restarts=2) as (host,):
        assert host.ends() == 1
    assert len(host.lines("ran")) == 3
    assert "2 of 2 restarts are used up" in host.stderr


ALWAYS_AT_STEP_11 = """
    import os
    from pathlib import Path
    from moorage.contract.progress import Progress
    Progress.create(Path(os.environ["MOORAGE_RUN_FOLDER"]), int(os.environ["LOCAL_RANK"])).update(10)
    print("ran", flush=True)
    raise RuntimeError("a token that is not in the vocabulary")
"""


def test_a_step_that_fails_three_times_ends_the_job(tmp_path: Path) -> None:
    with run_train(tmp_path, ALWAYS_AT_STEP_11, max_restarts=9) as (host,):
        assert host.ends() == 1
    assert len(host.lines("ran")) == 3
    assert host.failure is not None
    assert "RuntimeError: a token that is not in the vocabulary" in host.failure
    assert "There is no other attempt: step 11 failed in 3 attempts, so it would fail again." in host.failure


def test_a_step_that_failed_in_earlier_starts_of_the_job_is_not_tried_three_times_more(tmp_path: Path) -> None:
    with run_train(tmp_path, ALWAYS_AT_STEP_11, hosts=2, max_restarts=1) as hosts:
        assert [host.ends() for host in hosts] == [1, 1]
    with run_train(tmp_path, hosts=2, max_restarts=9) as hosts:
        assert [host.ends() for host in hosts] == [1, 1]
    for host in hosts:
        assert host.failure is not None and "a token that is not in the vocabulary" in host.failure
        assert "step 11 failed in 3 attempts, 2 of them in earlier starts of the job" in host.failure
        events = host.folder.ledger()
        starts = sorted((e["launch"], e["attempt"]) for e in events if e["event"] == "start")
        assert starts == [(1, 0), (1, 1), (2, 0)]
        assert [e["step"] for e in events if e["event"] == "attempt-failed"] == [10, 10, 10]


def test_a_grandchild_in_the_background_does_not_hold_the_job_open(tmp_path: Path) -> None:
    program = """
        import subprocess, sys
        for own_session in (False, True):
            child = subprocess.Popen(["sleep", "600"], start_new_session=own_session)
            print("pid", int(own_session), child.pid)
        print("the last line", end="", flush=True)
    """
    with run_train(tmp_path, program) as (host,):
        assert host.ends(10) == 0
    assert host.stdout.endswith("the last line\n")
    for pid in pids(host.lines("pid")).values():
        ends(pid)


def test_what_a_rank_leaves_behind_ends_with_it_while_others_run(tmp_path: Path) -> None:
    program = """
        import os, subprocess, time
        if os.environ["RANK"] == "1":
            print("pid 1", subprocess.Popen(["sleep", "600"]).pid)
        else:
            time.sleep(600)
    """
    with run_train(tmp_path, program, ranks=2) as (host,):
        host.wait_for("pid 1")
        ends(*pids(host.lines("pid")).values())
        assert host.process.poll() is None


def test_orphans_are_reaped_while_the_job_runs(tmp_path: Path) -> None:
    program = """
        import os, subprocess, sys, time
        # A child that leaves a grandchild behind: it comes to the supervisor.
        leave = "import subprocess; print('pid 0', subprocess.Popen(['sleep', '0.3']).pid)"
        subprocess.run([sys.executable, "-c", leave])
        time.sleep(600)
    """
    with run_train(tmp_path, program) as (host,):
        host.wait_for("pid 0")
        (orphan,) = pids(host.lines("pid")).values()
        wait_until(lambda: gone(orphan), what="reaping")
        assert host.process.poll() is None


def test_no_rank_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with run_train(tmp_path, WAIT, ranks=2) as (host,):
        host.wait_for("pid", times=2)
        host.process.kill()
        for pid in pids(host.lines("pid")).values():
            ends(pid)


def test_secrets_do_not_reach_the_failure_file_or_our_log(tmp_path: Path) -> None:
    program = """
        import argparse, os
        parser = argparse.ArgumentParser()
        parser.add_argument("--api_key")
        key = parser.parse_args().api_key
        raise ConnectionError(f"401 for {key} and {os.environ['DB_PASSWORD']!r}")
    """
    hidden = {"api_key": '"tr0ub4dor&3"'}
    with run_train(tmp_path, program, hyperparameters=hidden, env={"DB_PASSWORD": "corr'ect\thorse"}) as (host,):
        assert host.ends() == 1
    assert host.failure is not None and "401 for ********" in host.failure
    ours = "\n".join(line for line in host.stderr.splitlines() if line.startswith("moorage:"))
    for text in (host.failure, ours, str(host.folder.ledger())):
        assert "tr0ub4dor" not in text and "horse" not in text


def test_the_failure_file_is_short_even_when_the_message_is_not(tmp_path: Path) -> None:
    with run_train(tmp_path, "raise ValueError('größer ☃ ' * 5000)") as (host,):
        assert host.ends() == 1
    data = host.folder.failure.read_bytes()
    assert len(data) <= 1024 and data.decode("utf-8").startswith("rank 0 on algo-1 failed with exit code 1: ValueError")


def test_a_stale_failure_file_is_removed_and_one_of_the_program_kept(tmp_path: Path) -> None:
    with run_train(tmp_path, "pass") as (host,):
        assert host.ends() == 0
    host.folder.file("output/failure", "of an earlier run")
    with run_train(tmp_path, "pass") as (host,):
        assert host.ends() == 0
    assert host.failure is None
    own = "import os; open(os.environ['SM_OUTPUT_DIR'] + '/failure', 'w').write('my own words'); raise SystemExit(4)"
    with run_train(tmp_path, own) as (host,):
        assert host.ends() == 4
    assert host.failure == "my own words"


def test_an_output_folder_that_cannot_be_written_is_only_logged(tmp_path: Path) -> None:
    JobFolder(tmp_path / "algo-1").file("output", "a file where a folder should be")
    with run_train(tmp_path, "import sys; sys.exit(5)") as (host,):
        assert host.ends() == 5
    assert "cannot write the failure file" in host.stderr


def test_what_is_wrong_before_the_start_is_said_with_its_own_code(tmp_path: Path) -> None:
    with run_train(tmp_path, "def broken(:\n    pass") as (host,):
        assert host.ends() == 66
    assert host.failure is not None and "syntax error in line 1" in host.failure
    host.folder.write("hyperparameters", "{not json")
    with run_train(tmp_path) as (host,):
        assert host.ends() == 78
    assert host.failure is not None and "hyperparameters.json is not valid JSON" in host.failure


def test_a_stop_ends_the_installation_of_requirements(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that accepts connections and never answers
        index = {"PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple"}
        JobFolder(tmp_path / "algo-1").file("code/requirements.txt", "a-package-of-that-name==1.0\n")
        with run_train(tmp_path, "print('started')", env=index) as (host,):
            silent.settimeout(20)
            connection, _ = silent.accept()
            with connection:
                host.signal()
                assert host.ends(5) == 143, host.report()
    assert host.failure is None and not host.lines("started")


UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def has_pid_namespaces() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*UNSHARE, "true"], check=False).returncode == 0


@pytest.mark.skipif(not has_pid_namespaces(), reason="this machine gives no PID namespaces (root is needed)")
def test_as_pid_1(tmp_path: Path) -> None:
    program = """
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        subprocess.run(["sh", "-c", "sleep 0.1 & sleep 0.2 &"])
        while {pid for pid in os.listdir("/proc") if pid.isdigit()} != {"1", str(os.getpid())}:
            time.sleep(0.01)  # a zombie is still listed
        print("parent", os.getppid(), flush=True)
        signal.pause()
    """
    folder = JobFolder(tmp_path)
    folder.code(train=textwrap.dedent(program))
    env = {**os.environ, **folder.env, **job_settings()}
    command = [*UNSHARE, sys.executable, str(TRAIN)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        host = HostProcess(folder=folder, process=process)
        try:
            host.wait_for("parent 1")
            (supervisor,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(supervisor), signal.SIGTERM)
            assert host.ends(10) == 143, host.report()
        finally:
            process.kill()


@pytest.mark.parametrize(("trap", "code"), [("", 143), ("trap 'echo trapped; kill $!; wait; exit 7' TERM", 7)])
def test_a_shell_script_lets_its_command_save(tmp_path: Path, trap: str, code: int) -> None:
    """A shell dies of SIGTERM while it waits; then the command it runs is asked, unless the script has a trap."""
    folder = JobFolder(tmp_path / "algo-1")
    folder.code(saves=textwrap.dedent(GRACEFUL.format(code=143)))
    waits = f"{sys.executable} saves.py & wait $!" if trap else f"{sys.executable} saves.py"
    folder.file("code/start.sh", f"{trap}\n{waits}\n")
    with run_train(tmp_path, ranks=1, hyperparameters={"sagemaker_program": "start.sh"}) as (host,):
        host.wait_for("ready 0")
        host.signal()
        assert host.ends() == code, host.report()
    assert host.lines("trapped") if trap else host.lines("saved 0")
