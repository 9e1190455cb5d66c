"""Finding, checking and commanding the training program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from jobs import Job
from moorage.contract.fingerprint import fingerprint
from moorage.contract.program import Program, prepare
from moorage.errors import ConfigError, ProgramError

SHOW = "import json, os, sys\nprint(json.dumps([sys.argv, os.getcwd(), sys.path[:2]]))\n"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "ml")


@pytest.fixture
def baked(tmp_path: Path) -> Path:
    return tmp_path / "program"


@pytest.fixture
def ready(job: Job, baked: Path, tmp_path: Path) -> Any:
    """Call prepare as `train` does, in an empty current folder."""
    here = tmp_path / "here"
    here.mkdir()

    def ready(*argv: str, **kwargs: Any) -> Program:
        usual = {"python": "python", "baked": baked, "here": here, "scratch": tmp_path}
        return prepare(job.config(), job.env, argv, **{**usual, **kwargs})

    return ready


def packed(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=".")
    return path


def test_the_whole_plan_of_a_script(job: Job, ready: Any) -> None:
    code = job.code(train="")
    job.hyperparameters(lr="0.1", moorage_strategy="ddp", sagemaker_job_name="x")
    job.env["PYTHONPATH"] = "/mine"
    program = ready()
    assert program == Program(
        argv=("python", str(code / "train.py"), "--lr", "0.1"),
        cwd=code,
        env={"PYTHONPATH": f"{code}:/mine"},
        fingerprint=program.fingerprint,
        description=f"train.py in {code} (the job's code folder; the one program there)",
        code=code,
        entry="train.py",
    )


@pytest.mark.parametrize("source", ["hyperparameter", "environment"])
@pytest.mark.parametrize("kind", ["folder", "archive", "url"])
def test_script_mode(job: Job, ready: Any, tmp_path: Path, kind: str, source: str) -> None:
    job.code(train="not this one")
    folder = tmp_path / "my code"
    (folder / "src").mkdir(parents=True)
    (folder / "src/go.py").write_text(SHOW)
    archive = packed(folder, tmp_path / "my code.tar.gz")
    location = {"folder": str(folder), "archive": str(archive), "url": archive.as_uri()}[kind]
    if source == "hyperparameter":
        job.hyperparameters(
            sagemaker_program=json.dumps("src/go.py"), sagemaker_submit_directory=json.dumps(location), lr="1"
        )
        job.env["SAGEMAKER_PROGRAM"] = "overruled.py"
    else:
        job.hyperparameters(lr="1")
        job.env |= {"SAGEMAKER_PROGRAM": "src/go.py", "SAGEMAKER_SUBMIT_DIRECTORY": location}
    program = ready()
    assert program.entry == "src/go.py"
    assert program.argv == ("python", str(program.code / "src/go.py"), "--lr", "1")
    assert (program.code / "src/go.py").read_text() == SHOW
    assert not program.code.is_relative_to(job.base), "nothing of ours under /opt/ml"
    assert source in program.description


def test_an_archive_is_unpacked_where_the_caller_cleans_up(job: Job, ready: Any, tmp_path: Path) -> None:
    job.code(train="")
    job.env["SAGEMAKER_SUBMIT_DIRECTORY"] = str(packed(job.base / "code", tmp_path / "code.tar.gz"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    one, two = ready(scratch=scratch), ready(scratch=scratch)
    assert one.code.parent == two.code.parent == scratch
    assert one.code != two.code
    assert one.fingerprint == two.fingerprint
    (tmp_path / "code.tar.gz").write_bytes(b"")
    with pytest.raises(ProgramError):
        ready(scratch=scratch)
    assert sorted(scratch.iterdir()) == sorted((one.code, two.code)), "nothing is left of one that cannot be unpacked"


def test_the_places_in_their_order(job: Job, ready: Any, baked: Path) -> None:
    places = [baked, job.base / "input/data/code", job.base / "code"]
    for place in places:
        place.mkdir(parents=True)
    for place in places:
        (place / "train.py").write_text("")
        assert ready().code == place


def test_a_named_program_is_looked_for_in_every_place(job: Job, ready: Any, baked: Path) -> None:
    job.code(helpers="")
    baked.mkdir()
    (baked / "go.py").touch()
    job.hyperparameters(sagemaker_program="go.py")
    assert ready().argv == ("python", str(baked / "go.py"))
    job.hyperparameters(sagemaker_program=str(baked / "go.py"))
    assert ready().entry == "go.py"


@pytest.mark.parametrize(
    ("files", "entry"),
    [
        (["train.py", "model.py"], "train.py"),
        (["main.py", "model.py"], "main.py"),
        (["only.py", "data.csv"], "only.py"),
        (["only.py", "setup.py", "__init__.py"], "only.py"),
    ],
)
def test_the_program_of_a_job_that_names_none(job: Job, ready: Any, files: list[str], entry: str) -> None:
    for name in files:
        job.file(f"code/{name}")
    assert ready().entry == entry


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], ["the job has no training program", "channel 'code'", "/opt/program", "sagemaker_program"]),
        (["train.py", "main.py"], ["train.py and main.py could both be it", "holds main.py, train.py"]),
        (["a.py", "b.py"], ["no train.py or main.py", "holds a.py, b.py", "name it by sagemaker_program"]),
        (["data/x.csv", "run.sh"], ["holds data/, run.sh"]),
        ([f"f{n:02}.txt" for n in range(20)], ["f11.txt and 8 more"]),
    ],
)
def test_no_program_to_be_found_lists_what_is_there(job: Job, ready: Any, files: list[str], says: list[str]) -> None:
    for name in files:
        job.file(f"code/{name}")
    with pytest.raises(ProgramError) as caught:
        ready()
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("pkg/go.py", ["python", "{code}/pkg/go.py"]),
        ("pkg.go", ["python", "-m", "pkg.go"]),
        ("pkg", ["python", "-m", "pkg"]),
        ("go.sh", ["bash", "{code}/go.sh"]),
        ("bin/go", ["{code}/bin/go"]),
    ],
)
@pytest.mark.parametrize("by_hand", [False, True])
def test_every_kind_of_program(job: Job, ready: Any, name: str, command: list[str], by_hand: bool) -> None:
    for file in ("pkg/go.py", "pkg/__main__.py", "go.sh", "bin/go"):
        job.file(f"code/{file}").chmod(0o755)
    if not by_hand:
        job.hyperparameters(sagemaker_program=name)
    program = ready(*[name] * by_hand)
    assert list(program.argv) == [part.format(code=program.code) for part in command]
    assert (program.entry, program.cwd) == (name, job.base / "code")


def test_the_command_line_names_a_program_with_arguments(job: Job, ready: Any) -> None:
    code = job.code(train="")
    job.hyperparameters(lr="0.1")
    assert ready("train.py", "--lr", "1", "x y").argv == (
        "python", str(code / "train.py"), "--lr", "0.1", "--lr", "1", "x y",
    )  # fmt: skip
    assert ready("-m", "train", "--fast").argv == ("python", "-m", "train", "--lr", "0.1", "--fast")


def test_a_file_of_the_current_folder(job: Job, ready: Any, tmp_path: Path) -> None:
    job.code(train="")
    mine = tmp_path / "here/examples/mine.py"
    mine.parent.mkdir()
    mine.touch()
    for name in ("examples/mine.py", str(mine), "../here/examples/mine.py"):
        program = ready(name)
        assert program.argv == ("python", str(mine))
        assert (program.code, program.cwd) == (mine.parent, tmp_path / "here")
    program = ready("-m", "examples.mine")
    assert (program.argv, program.cwd) == (("python", "-m", "examples.mine"), tmp_path / "here")


def test_in_the_code_folder_itself_the_code_folder_stays(job: Job, ready: Any) -> None:
    """As SDK v3 does it: `cd CODE; exec train src/go.py`."""
    job.file("input/data/code/src/go.py")
    code = job.base / "input/data/code"
    program = ready("src/go.py", here=code)
    assert (program.entry, program.code, program.cwd) == ("src/go.py", code, code)
    assert ready("go.py", here=code / "src").entry == "src/go.py"


def test_submitted_code_comes_before_the_current_folder(job: Job, ready: Any, tmp_path: Path) -> None:
    (tmp_path / "here/train.py").touch()
    code = job.code(train="")
    job.hyperparameters(sagemaker_submit_directory=str(code))
    assert ready("train.py").code == code


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nothing.py"], ["'nothing.py' was not found", "holds train.py"]),
        (["nothing.pkg"], ["'nothing.pkg' was not found"]),
        (["--help"], ["'--help' is not a program", "train PROGRAM"]),
        (["-m"], ["'-m' is not a program"]),
        ([""], ["'' is not a program"]),
        (["a\0b"], ["was not found"]),
        (["x" * 5000], ["was not found"]),
        (["train.py/x"], ["was not found"]),
    ],
)
def test_a_wrong_command_line(job: Job, ready: Any, argv: list[str], says: list[str]) -> None:
    job.code(train="")
    with pytest.raises(ProgramError) as caught:
        ready(*argv)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../out.py", "src/../../out.py", "{tmp}/out.py", "link.py", "folder/out.py", "../no.py"]
)
def test_a_program_outside_the_code_folder(job: Job, ready: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "out.py").touch()
    (tmp_path / "ml/out.py").touch()
    code = job.code(train="")
    (code / "link.py").symlink_to(tmp_path / "out.py")
    (code / "folder").symlink_to(tmp_path)
    job.hyperparameters(sagemaker_program=name.format(tmp=tmp_path))
    with pytest.raises(ProgramError, match="lies outside the code folder") as caught:
        ready()
    assert name.format(tmp=tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("train.py", "import os\nif True print(1)\n", ["train.py", "line 2", "if True print(1)", "py_compile"]),
        ("train.py", "def f():\nreturn 1\n", ["line 2", "indent"]),
        ("train.py", "return 1\n", ["'return' outside function"]),
        ("train.py", "api_key='sk-abcdefghijklmnopqrst' x\n", ["line 1", "********"]),
        ("train.py", "a\0b", ["train.py"]),
        ("pkg/mod.py", "x = (\n", ["line 1"]),
    ],
)
def test_a_syntax_error_is_found_before_a_rank_starts(
    job: Job, ready: Any, name: str, text: str, says: list[str]
) -> None:
    job.file(f"code/{name}", text)
    job.hyperparameters(sagemaker_program="pkg.mod" if name.startswith("pkg") else name)
    with pytest.raises(ProgramError) as caught:
        ready()
    for part in says:
        assert part in str(caught.value)
    assert "sk-abc" not in str(caught.value)


def test_odd_but_right_source_is_accepted(job: Job, ready: Any) -> None:
    job.file("code/train.py").write_bytes("# -*- coding: latin-1 -*-\nx = '\\d \xe9'\n".encode("latin-1"))
    assert ready().entry == "train.py"


def test_a_program_that_cannot_be_started(job: Job, ready: Any) -> None:
    job.file("code/go").chmod(0o644)
    job.hyperparameters(sagemaker_program="go")
    with pytest.raises(ProgramError, match=r"'go' is not executable.*chmod"):
        ready()


def test_a_hyperparameter_that_cannot_be_an_argument(job: Job, ready: Any) -> None:
    job.code(train="")
    job.hyperparameters(**{"a;b": "1"})
    with pytest.raises(ConfigError, match="'a;b'"):
        ready()


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("/nowhere/code.tar.gz", ["no folder or archive '/nowhere/code.tar.gz'"]),
        ("https://user:hunter22@host/code.tar.gz", ["cannot fetch code from", "s3://bucket/key.tar.gz"]),
        ("s3://bucket", ["'s3://bucket' names no object"]),
    ],
)
def test_a_wrong_submit_directory(job: Job, ready: Any, location: str, says: list[str]) -> None:
    job.env["SAGEMAKER_SUBMIT_DIRECTORY"] = location
    with pytest.raises(ProgramError) as caught:
        ready()
    for part in [*says, "environment variable SAGEMAKER_SUBMIT_DIRECTORY"]:
        assert part in str(caught.value)
    assert "hunter22" not in str(caught.value)


def test_nothing_secret_in_repr_or_description(job: Job, ready: Any) -> None:
    job.code(train="")
    job.hyperparameters(api_key="hunter22")
    job.env["PYTHONPATH"] = "hunter22"
    assert "hunter22" not in repr(ready()) + ready().description


def test_the_program_runs_as_planned(job: Job, ready: Any) -> None:
    """Sibling imports work for a script in a sub-folder and for a module; the shell never sees a value."""
    job.file("code/helpers.py", SHOW)
    job.file("code/src/go.py", "import helpers\n")
    hostile = 'a "b"\n; touch evil $(touch evil)'
    job.hyperparameters(x=hostile)
    for name in ("src/go.py", "src.go"):
        program = ready(name, python=sys.executable)
        run = subprocess.run(
            program.argv, cwd=program.cwd, env=dict(program.env), capture_output=True, text=True, check=True
        )
        argv, cwd, _ = json.loads(run.stdout)
        assert argv[1:] == ["-x", hostile]
        assert cwd == str(job.base / "code")
    job.file("code/go.sh", 'printf "%s" "$*"\n')
    program = ready("go.sh")
    run = subprocess.run(program.argv, cwd=program.cwd, capture_output=True, text=True, check=True)
    assert run.stdout == f"-x {hostile}"
    assert not list(job.base.rglob("evil"))


class TestFingerprint:
    """Two hosts notice that they run different things, and only then."""

    @pytest.fixture
    def hosts(self, tmp_path: Path) -> tuple[Job, Job]:
        jobs = Job(tmp_path / "a"), Job(tmp_path / "b")
        for job in jobs:
            job.code(train="import model", model="x = 1")
        return jobs

    def same(self, hosts: tuple[Job, Job], *argv: str) -> bool:
        one, two = (prepare(job.config(), job.env, argv).fingerprint for job in hosts)
        return one == two

    def test_the_same_code_in_two_folders(self, hosts: tuple[Job, Job]) -> None:
        assert self.same(hosts)
        assert self.same(hosts, "train.py", "--x")

    @pytest.mark.parametrize("name", ["code/__pycache__/a.py", "code/.git/HEAD", "code/a.pyc", "code/.venv/b.py"])
    def test_what_does_not_count(self, hosts: tuple[Job, Job], name: str) -> None:
        hosts[0].file(name, "x")
        assert self.same(hosts)

    def test_one_byte(self, hosts: tuple[Job, Job]) -> None:
        hosts[0].code(model="x = 2")
        assert not self.same(hosts)

    def test_another_name_or_one_file_more(self, hosts: tuple[Job, Job]) -> None:
        hosts[0].file("code/empty.py")
        assert not self.same(hosts)
        hosts[1].file("code/other.py")
        assert not self.same(hosts)

    def test_another_hyperparameter(self, hosts: tuple[Job, Job]) -> None:
        hosts[0].hyperparameters(lr="1")
        hosts[1].hyperparameters(lr="2")
        assert not self.same(hosts)

    def test_files_do_not_run_together(self, hosts: tuple[Job, Job]) -> None:
        hosts[0].code(a="b.py")
        hosts[1].code(a="", b="")
        assert not self.same(hosts)

    def test_large_files_count_by_size(self, hosts: tuple[Job, Job]) -> None:
        for job, byte in zip(hosts, (b"x", b"y"), strict=True):
            with job.file("code/weights.bin").open("wb") as file:
                file.truncate(11 * 2**20)
                file.write(byte)
        assert self.same(hosts)
        with (hosts[0].base / "code/weights.bin").open("ab") as file:
            file.write(b"x")
        assert not self.same(hosts)

    def test_a_job_folder_inside_the_code_is_not_code(self, tmp_path: Path) -> None:
        job = Job(tmp_path / "ml")
        (tmp_path / "train.py").touch()
        before = prepare(job.config(), job.env, ["train.py"], here=tmp_path).fingerprint
        job.file("checkpoints/step-1/x", "x")
        assert prepare(job.config(), job.env, ["train.py"], here=tmp_path).fingerprint == before

    def test_a_link_counts_by_where_it_points(self, hosts: tuple[Job, Job]) -> None:
        for job, target in zip(hosts, ("model.py", "/nowhere"), strict=True):
            (job.base / "code/link").symlink_to(target)
        assert not self.same(hosts)

    def test_a_pipe_is_neither_code_nor_read(self, hosts: tuple[Job, Job]) -> None:
        path = hosts[0].file("code/odd.py")
        path.unlink()
        os.mkfifo(path)
        assert self.same(hosts)


def test_a_mount_below_the_code_and_files_without_end_do_not_hold_the_start_up(tmp_path: Path) -> None:
    """A program named by hand may lie in any folder, /proc and all below it."""
    if subprocess.run(
        ["mount", "-t", "proc", "proc", _made(tmp_path / "proc")], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting needs root")
    try:
        (tmp_path / "train.py").write_text("pass")
        assert fingerprint(tmp_path, []) != fingerprint(tmp_path, ["x"])
        assert fingerprint(tmp_path, []) == fingerprint(tmp_path, [], [tmp_path / "proc"])
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "proc")], check=True)


def _made(folder: Path) -> str:
    folder.mkdir()
    return str(folder)
