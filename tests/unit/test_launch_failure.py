"""What is said of a failure: by the rank, by us, and in the file that the platform shows."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.contract.failure import LIMIT, Failure, hint_for, job_secrets, shortened, write_failure
from moorage.errors import ConfigError
from moorage.launch.diagnosis import Ending, diagnose

NO_FILE = Path("/nonexistent/error.json")


def failure(**fields: object) -> Failure:
    return Failure(**{"host": "algo-2", "rank": 3, "code": 1, "message": "ValueError: bad", **fields})  # type: ignore[arg-type]


def said_by(tmp_path: Path, program: str, *options: str) -> Failure:
    """The diagnosis of a Python program that really ran."""
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(program))
    done = subprocess.run([sys.executable, *options, str(file)], stderr=subprocess.PIPE, text=True, check=False)
    stderr = done.stderr.splitlines()
    return diagnose(Ending(rank=0, status=done.returncode, error_file=NO_FILE, stderr=stderr), "algo-1")


@given(
    st.text(max_size=3000),
    st.lists(st.text(max_size=300), max_size=8),
    st.sampled_from(["", "x" * 300]),
    st.text("-é☃"),
)
def test_the_file_is_never_longer_than_the_platform_reads(
    message: str, frames: list[str], hint: str, host: str
) -> None:
    text = failure(host=host, message=message, frames=tuple(frames), hint=hint).text()
    assert len(text.encode("utf-8")) <= LIMIT


@given(st.text(), st.integers(3, 40))
def test_shortening_tears_no_character(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short.encode()) <= limit
    assert text.startswith(short.removesuffix("...")) or short == text.encode("utf-8", "replace").decode()


def test_what_matters_comes_first_and_the_outer_frames_give_way() -> None:
    frames = tuple(f"file_{number}.py:1 in f: {'x' * 150}" for number in range(8))
    text = failure(hint="do this.", frames=frames).text()
    head, hint, title, *kept = text.split("\n")
    assert head == "rank 3 on algo-2 failed with exit code 1: ValueError: bad"
    assert (hint, title) == ("Hint: do this.", "Last frames:")
    assert [line.split(".")[0].strip() for line in kept] == ["file_3", "file_4", "file_5", "file_6", "file_7"]


def test_a_failure_survives_the_way_to_another_host() -> None:
    one = failure(frames=("a.py:1 in f",), signal=9, hint="h", consequence=True, time=1.5)
    assert Failure.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_every_form_of_a_secret_is_hidden(tmp_path: Path) -> None:
    secrets = job_secrets({"DB_PASSWORD": "it's\n\\odd"}, {"api_key": '"quoted1"', "max_tokens": "1000000"})
    message = (
        f"{'it' + chr(39) + 's' + chr(10) + chr(92) + 'odd'} {'it' + chr(39) + 's' + chr(10) + chr(92) + 'odd'!r} "
    )
    message += "quoted1 it%27s%0A%5Codd 1000000"
    write_failure(tmp_path / "output" / "failure", failure(message=message, frames=(message,)), secrets)
    written = (tmp_path / "output" / "failure").read_text()
    assert not any(word in written for word in ("odd", "quoted1"))
    assert "1000000" in written


def test_a_secret_is_hidden_before_the_text_is_shortened(tmp_path: Path) -> None:
    key = "k" * 300
    write_failure(tmp_path / "failure", failure(message="x" * 400 + key), job_secrets({"API_KEY": key}, {}))
    assert "kkkk" not in (tmp_path / "failure").read_text()


def test_the_traceback_of_a_program(tmp_path: Path) -> None:
    found = said_by(
        tmp_path,
        """
        import sys, warnings
        def inner(x):
            return 1 / x
        def outer():
            try:
                inner(0)
            except ZeroDivisionError as error:
                raise RuntimeError("the batch is empty\\nsecond line") from error
        try:
            outer()
        finally:
            sys.stderr.flush()
        """,
    )
    assert found.message == "RuntimeError: the batch is empty\nsecond line"
    assert [frame.split("/")[-1] for frame in found.frames] == [
        "program.py:11 in <module>: outer()",
        'program.py:9 in outer: raise RuntimeError("the batch is empty\\nsecond line") from error',
    ]
    assert (found.code, found.signal, found.consequence) == (1, 0, False)


def test_a_traceback_marked_by_torch_and_followed_by_other_lines() -> None:
    stderr = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "/opt/ml/code/train.py", line 9, in <module>
[rank1]:     main()
[rank1]:     ^^^^^^
[rank1]:   File "/opt/ml/code/train.py", line 5, in main
[rank1]:     raise ValueError("label 11")
[rank1]: ValueError: label 11
[W1123 10:00:00.1 ProcessGroup.cpp:1] Warning: destroy_process_group() was not called
"""
    found = diagnose(Ending(rank=1, status=1, error_file=NO_FILE, stderr=stderr.splitlines()), "h")
    assert found.message.startswith("ValueError: label 11")
    assert found.frames == (
        "ml/code/train.py:9 in <module>: main()",
        'ml/code/train.py:5 in main: raise ValueError("label 11")',
    )


def test_a_syntax_error_in_an_imported_module(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("x = (1,\n")
    found = said_by(tmp_path, "import helper")
    assert found.message == "SyntaxError: '(' was never closed"
    assert found.frames[-1].endswith("helper.py:1: x = (1,") and "does not compile" in found.hint


def test_a_crash_in_native_code_names_the_frame(tmp_path: Path) -> None:
    program = """
        import faulthandler
        def crash():
            faulthandler._sigsegv()
        def main():
            crash()
        main()
    """
    found = said_by(tmp_path, program, "-X", "faulthandler")
    assert (found.signal, found.code, found.message) == (11, 139, "Segmentation fault")
    assert [frame.split(" in ")[1] for frame in found.frames] == ["<module>", "main", "crash"]


def test_a_program_that_only_says_something_and_leaves(tmp_path: Path) -> None:
    found = said_by(tmp_path, "import sys; sys.exit('the channel train is empty')")
    assert (found.message, found.code) == ("the channel train is empty", 1)


def test_an_error_before_the_host_knows_its_name() -> None:
    assert Failure.from_error(ConfigError("x.json is missing", fix="write it"), "").headline == (
        "x.json is missing. write it."
    )


def test_a_program_that_says_nothing() -> None:
    found = diagnose(Ending(rank=0, status=-9, error_file=NO_FILE, stderr=[]), "h")
    assert found.headline == "rank 0 on h was killed by SIGKILL"
    assert "out of memory" in found.hint


def test_the_last_words_of_native_code_without_the_noise_around_them() -> None:
    stderr = [
        "terminate called without an active exception",
        "Fatal Python error: Aborted",
        "",
        "Thread 0x00007f8766024b80 (most recent call first):",
        "  <no Python frame>",
        "",
        "Extension modules: numpy._core._multiarray_umath, yaml._yaml (total: 2)",
    ]
    found = diagnose(Ending(rank=1, status=-6, error_file=NO_FILE, stderr=stderr), "h")
    assert found.headline == "rank 1 on h was killed by SIGABRT: terminate called without an active exception"
    assert "destroy_process_group" in found.hint
    assert not found.consequence


def test_torchruns_error_file_wins_over_the_log(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    stack = 'Traceback (most recent call last):\n  File "/a/b/c/train.py", line 2, in main\n    go()\nValueError: x\n'
    extra = {"py_callstack": stack, "timestamp": "1700000000"}
    file.write_text(json.dumps({"message": {"message": "ValueError: x", "extraInfo": extra}}))
    found = diagnose(Ending(rank=0, status=1, error_file=file, stderr=["KeyError: other"]), "h")
    assert (found.message, found.frames) == ("ValueError: x", ("b/c/train.py:2 in main: go()",))
    assert found.time == file.stat().st_mtime


def test_the_exception_of_a_data_worker_and_not_its_traceback(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    message = (
        "KeyError: Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        + '  File "/a/b/c/worker.py", line 374, in _worker_loop\n    data = fetch(index)\n' * 12
        + "KeyError: 'the column price'\n"
    )
    file.write_text(json.dumps({"message": {"message": message, "extraInfo": {}}}))
    found = diagnose(Ending(rank=0, status=1, error_file=file, stderr=[]), "h")
    assert found.message == "KeyError: Caught KeyError in DataLoader worker process 0: KeyError: 'the column price'"


@pytest.mark.parametrize("content", ["", "[]", '{"message": 3}', "{}", '{"message": {"extraInfo": []}}', "\xff"])
def test_an_error_file_that_cannot_be_read_falls_back_to_the_log(tmp_path: Path, content: str) -> None:
    file = tmp_path / "error.json"
    file.write_text(content, encoding="latin-1")
    found = diagnose(Ending(rank=0, status=1, error_file=file, stderr=["only this"]), "h")
    assert found.message in ("only this", "")


@pytest.mark.parametrize(
    ("message", "status", "effect"),
    [
        ("RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer", 1, True),
        ("torch.distributed.DistBackendError: NCCL error in: x.cpp:1, remote process exited", 1, True),
        ("torch.distributed.DistNetworkError: The client socket has timed out after 600000ms", 1, True),
        ("ConnectionResetError: [Errno 104] Connection reset by peer", 1, True),
        ("what():  [Rank 0] Watchdog caught collective operation timeout: WorkNCCL", -6, True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", -6, False),
        ("[Gloo] Rank 0 is connected to 1 peer ranks", -11, False),
        ("Connection closed by peer", -9, False),
        ("", -15, True),
        ("ValueError: gloopy data", 1, False),
    ],
)
def test_what_looks_like_the_effect_of_another_rank(message: str, status: int, effect: bool) -> None:
    assert diagnose(Ending(rank=0, status=status, error_file=NO_FILE, stderr=[message]), "h").consequence is effect


@pytest.mark.parametrize(
    ("text", "signal", "word"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 0, "device is out of memory"),
        ("OSError: [Errno 28] No space left on device", 0, "disk is full"),
        ("ModuleNotFoundError: No module named 'timm'", 0, "requirements.txt"),
        ("RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_3>", 0, "/dev/shm"),
        ("", 7, "/dev/shm"),
        ("", 9, "out of memory"),
        ("ValueError: bad", 0, ""),
    ],
)
def test_hints(text: str, signal: int, word: str) -> None:
    hint = hint_for(text, signal)
    assert word in hint and bool(word) == bool(hint)
