"""What `moorage init` lays out: everything the package has, a job file that reads, and nothing written over."""

from __future__ import annotations

import subprocess
import tomllib
from datetime import datetime
from pathlib import Path

import pytest

from moorage.errors import ConfigError
from moorage.rehearsal import jobfile, scaffold
from moorage.rehearsal.assemble import assemble

ROOT = Path(__file__).parents[2]


def test_the_job_file_describes_a_job(tmp_path: Path) -> None:
    folder = tmp_path / "my_digits.v2"
    made = scaffold.lay_out(folder, image="registry:5000/team/digits:1")
    assert sorted(made) == sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert {Path("Makefile"), Path("README.md"), Path(".gitignore"), Path("code/train.py")} <= set(made)
    job = assemble(jobfile.describe(jobfile.find(folder)), datetime.now())
    assert job.name.startswith("my-digits-v2-")
    assert (job.image, job.program, job.source) == ("registry:5000/team/digits:1", "train.py", folder / "code")
    assert (job.data["train"].path / "digits.npz").is_file()
    assert set(job.metrics) == {"train_loss", "val_accuracy"}


def test_the_program_is_the_example(tmp_path: Path) -> None:
    scaffold.lay_out(tmp_path)
    mine, example = (
        path.read_text(encoding="utf-8").split('"""', 2)[2]
        for path in (tmp_path / "code" / "train.py", ROOT / "examples" / "digits" / "train.py")
    )
    assert mine == example


def test_the_makefile_calls_commands_that_exist(tmp_path: Path) -> None:
    scaffold.lay_out(tmp_path)
    listed = subprocess.run(["make", "-C", str(tmp_path)], capture_output=True, text=True, timeout=60, check=True)
    assert "train " in listed.stdout
    for target in ("train", "run", "interrupted", "report", "verify", "doctor"):
        shown = subprocess.run(
            ["make", "-n", target, "MOORAGE=moorage"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        command = shown.stdout.split()
        assert command[0] == "moorage" and command[1] in ("run", "report", "verify", "doctor")


def test_a_folder_with_something_in_it_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        scaffold.lay_out(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", "mine.txt"]


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the name of an image"):
        scaffold.lay_out(tmp_path / "new", image='moorage"\nhosts = 9')
    assert not (tmp_path / "new").exists()


def test_all_of_it_is_in_the_distribution() -> None:
    import fnmatch

    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["moorage"]
    home = ROOT / "container" / "moorage"
    for path in scaffold.PROJECT.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(home).as_posix()
            # As setuptools has it, a star does not reach over a slash.
            assert any(
                fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns
            ), name
