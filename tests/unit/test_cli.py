"""The `moorage` command, started as users start it."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import typer

from moorage import errors
from moorage.cli.app import build
from moorage.rehearsal.jobschema import documented

ROOT = Path(__file__).parents[2]


def moorage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moorage.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_metrics_of_the_example() -> None:
    done = moorage("metrics", str(ROOT / "examples" / "digits" / "train.py"), "--json")
    assert done.returncode == 0, done.stderr
    assert [d["Name"] for d in json.loads(done.stdout)] == ["train_loss", "val_accuracy"]


def test_metrics_of_a_program_without_any_says_where_they_come_from(tmp_path: Path) -> None:
    program = tmp_path / "empty.py"
    program.write_text("pass\n")
    done = moorage("metrics", str(program))
    assert done.returncode == 66
    assert "run.report" in done.stderr
    program.write_text("def (\n")
    assert "empty.py is not Python" in moorage("metrics", str(program)).stderr


def test_settings_are_listed_with_their_meaning() -> None:
    done = moorage("settings")
    assert "moorage_<name>" in done.stdout
    assert "Seconds from SIGTERM" in done.stdout
    assert {entry["name"] for entry in json.loads(moorage("settings", "--json").stdout)} >= {"strategy", "grace"}


def test_the_command_loads_nothing_heavy_before_it_is_needed() -> None:
    heavy = {"torch", "boto3", "botocore", "numpy", "docker", "pydantic", "jinja2", "rich.live"}
    code = f"import sys, moorage.cli; moorage.cli.main(['--version']); print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[1:] == [""]


COMMANDS = {str(command.name): command for command in typer.main.get_command(build()).commands.values()}
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_page_has_every_command_and_every_exit_code() -> None:
    assert {"run", "verify", "report", "clean", "init", "doctor", "inspect", "goodput"} <= COMMANDS.keys()
    for name, command in COMMANDS.items():
        assert f"| `moorage {name}` |" in PAGE
        codes = re.findall(r"^(\d+) +\S", str(command.epilog), re.MULTILINE)
        for code in codes:
            assert f"\n| {code} |" in PAGE, f"exit code {code} of {name}"
    of_errors = {value.exit_code for value in vars(errors).values() if inspect.isclass(value)} - {1, 137}
    assert not [code for code in of_errors if f"\n| {code} |" not in PAGE]


def test_the_page_has_every_key_of_the_job_file_as_it_is() -> None:
    for key, default, meaning in documented():
        assert f"| `{key}` | {f'`{default}`' if default else ''} | {meaning} |" in PAGE


def test_every_command_has_examples_that_it_takes() -> None:
    for name, command in COMMANDS.items():
        examples = re.findall(r"^\$ moorage (.+)$", str(command.epilog), re.MULTILINE)
        assert examples, name
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for example in examples:
            assert example.split()[0] == name
            given = {word.partition("=")[0] for word in example.split() if word.startswith("-")}
            assert given <= known, f"{example}: {given - known}"


def test_errors_say_what_why_and_what_to_do_and_wrong_usage_is_2(tmp_path: Path) -> None:
    broken = tmp_path / "moorage.toml"
    broken.write_text('hosts = "2"\n')
    done = moorage("run", "--config", str(broken))
    assert (done.returncode, done.stdout) == (78, "")
    assert "moorage.toml, line 1: hosts is '2'" in done.stderr and "fix: give a whole number" in done.stderr
    for arguments in (["swim"], ["run", "--swim"], ["verify", "--times", "0"], ["report", "--spot-price", "dear"]):
        assert moorage(*arguments).returncode == 2, arguments


def test_print_config_prints_a_job_file_that_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    flags = ["-n", "2", "-p", "lr=1e-3", "-p", "api_key=hidden", "--interrupt", "random:2,hard", "--grace", "30s"]
    first = moorage("run", "train.py", "--source", str(tmp_path), *flags, "--print-config")
    assert "hidden" not in first.stdout
    (tmp_path / "job.toml").write_text(first.stdout)
    second = moorage("run", "--config", str(tmp_path / "job.toml"), "--print-config")
    assert (second.returncode, second.stdout) == (0, first.stdout), second.stderr


def test_a_report_is_of_something(tmp_path: Path) -> None:
    done = moorage("report", str(tmp_path))
    assert done.returncode == 78 and "tells nothing of a job" in done.stderr
    assert "there is no folder" in moorage("report", str(tmp_path / "absent")).stderr
    assert "one price alone" in moorage("report", str(tmp_path), "--spot-price", "0.5").stderr
