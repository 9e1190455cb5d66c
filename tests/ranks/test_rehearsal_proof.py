"""`moorage verify` of programs that go on rightly, wrongly and not at all; and the way from init to report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rehearsals import LOSS, Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell.opened(tmp_path) as opened:
        yield opened


def verify(shell: Shell, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Of the counting program: the verdict."""
    program = str(shell.program())
    done = shell.moorage("verify", program, *LOSS, *arguments, "--json", code=code)
    verdict: dict[str, Any] = json.loads(done.printed)
    assert json.loads((shell.folder / verdict["folder"] / "verdict.json").read_text()) == verdict
    alone = json.loads((shell.folder / verdict["folder"] / "uninterrupted" / "outcome.json").read_text())
    assert len(alone["attempts"]) == 1, "left alone"
    for part in ("uninterrupted", "interrupted"):
        shell.check_nothing_left(Path(verdict["folder"]) / part)
    return verdict


def test_one_that_goes_on_where_it_was_is_bit_exact(shell: Shell) -> None:
    verdict = verify(shell, "--times", "2", "--seed", "3", "-p", "steps=60")
    assert (verdict["answer"], verdict["alike"]) == ("same", "bit-exact")
    assert verdict["interruptions"] == [2, 2]
    assert verdict["losses"]["metrics"] == ["loss"] and verdict["losses"]["values"] >= 60
    assert verdict["weights"]["files"] == ["weights.json"]
    assert len(verdict["resumes"]) == 2 and min(verdict["resumes"]) > 0


def test_one_that_forgets_its_momentum_diverges_at_the_second_step(shell: Shell) -> None:
    verdict = verify(shell, "--interrupt", "step=20", "-p", "steps=40", "-p", "fault=forgets-speed", code=1)
    assert (verdict["answer"], verdict["alike"]) == ("diverged", "diverged")
    first = verdict["losses"]["first"]
    assert (first["metric"], first["attempt"]) == ("loss", 2)
    assert first["step"] == verdict["resumes"][0] + 2
    assert "optimizer" in verdict["causes"][0]
    assert verdict["weights"]["same"] == "diverged"


def test_one_that_begins_anew_has_the_same_weights_and_is_not_resumed(shell: Shell) -> None:
    verdict = verify(shell, "--interrupt", "step=10", "-p", "steps=20", "-p", "fault=forgets", code=1)
    assert (verdict["answer"], verdict["alike"]) == ("not resumed", "bit-exact")
    assert verdict["attempts"][1]["replayed"] >= 10


def test_nothing_is_proven_of_one_that_fails_alone_or_is_over_too_soon(shell: Shell) -> None:
    verdict = verify_alone(shell, "-p", "fault=raises-5", "-s", "max_restarts=0")
    assert "the seventh seal" in verdict["failure"]
    verdict = verify(shell, "--interrupt", "step=1000", "-p", "steps=5", code=3)
    assert (verdict["answer"], verdict["interruptions"]) == ("unknown", [0, 1])


def verify_alone(shell: Shell, *arguments: str) -> dict[str, Any]:
    done = shell.moorage("verify", str(shell.program()), *arguments, "--json", code=3)
    verdict: dict[str, Any] = json.loads(done.printed)
    assert verdict["answer"] == "unknown"
    assert not (shell.folder / verdict["folder"] / "interrupted").exists()
    return verdict


def test_one_that_fails_only_when_it_is_interrupted(shell: Shell) -> None:
    verdict = verify(
        shell, "--interrupt", "step=10", "-p", "steps=20", "-p", "fault=chokes", "-s", "max_restarts=0", code=1
    )
    assert verdict["answer"] == "failed"
    assert "cannot read my own state" in verdict["failure"]


def test_sizes_that_hosts_cannot_share_are_refused(shell: Shell) -> None:
    program = str(shell.program())
    assert (
        "cannot be shared by 2 hosts"
        in shell.moorage("verify", program, "-n", "2", "--world-sizes", "2,3", code=78).told
    )
    assert "are not numbers" in shell.moorage("verify", program, "--world-sizes", "2;3", code=78).told
    assert not (shell.folder / "runs").exists()


def test_ctrl_c_ends_a_proof(shell: Shell) -> None:
    command = shell.start("verify", str(shell.program()), "-p", "steps=100000", "--logs", "all")
    command.wait_for("step 5 ")
    command.interrupt()
    assert command.ends() == 130
    assert command.printed == ""
    (folder,) = (shell.folder / "runs").iterdir()
    shell.check_nothing_left(folder / "uninterrupted")


class Page(HTMLParser):
    """What a report loads, and the words in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.drawings = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.drawings += tag == "svg"
        self.loaded += [
            value for name, value in attrs if name in ("src", "href") and value and not value.startswith("data:")
        ]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_from_an_empty_folder_to_a_proof_on_other_world_sizes(shell: Shell) -> None:
    shell.moorage("init", ".")
    common = ("--engine", "process", "-p", "epochs=1")
    outcome = json.loads(shell.moorage("run", *common, "--interrupt", "step=15", "--json").printed)
    assert outcome["metrics"] == {"train_loss": outcome["metrics"]["train_loss"], "val_accuracy": 1}
    assert outcome["goodput"]["steps"] == 44

    told = shell.moorage("report", "--on-demand-price", "3.06", "--spot-price", "0.92").printed
    assert "x interrupted, | finished" in told and "spot" in told
    page = Page((shell.folder / outcome["folder"] / "report.html").read_text())
    assert page.loaded == [], "nothing is fetched"
    assert page.drawings >= 6
    text = " ".join(" ".join(page.words).split())
    assert outcome["name"] in text and "What Spot saves" in text and "val_accuracy" in text
    data = json.loads(shell.moorage("report", outcome["name"], "--json").printed)
    assert data["steps"] == 44 and data["interruptions"] == 1
    assert [attempt["ended_by"] for attempt in data["attempts"]] == ["interruption", "finished"]
    assert data["attempts"][1]["first"] == data["attempts"][0]["last"], "no step was lost"
    assert sum(data["goodput"]["seconds"].values()) == pytest.approx(data["goodput"]["wall_seconds"], abs=0.1)

    verdict = json.loads(shell.moorage("verify", *common, "--times", "1", "--world-sizes", "2,1", "--json").printed)
    assert (verdict["answer"], verdict["alike"]) == ("same", "bit-exact")
    assert verdict["weights"]["files"] == ["example.npy", "model.safetensors"]
    (end,) = verdict["ends"]
    assert end["missing"] == [] and end["apart"] < 0.1
    spread = (shell.folder / verdict["folder"] / "world-sizes" / "logs" / "algo-1.log").read_text()
    assert re.findall(r"attempt 0: .* of (\d+) on algo-1", spread) == ["2", "1"]
