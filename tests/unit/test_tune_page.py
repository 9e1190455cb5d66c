"""The page of a study, of results made up: what it shows, and that its commands are the best trial's."""

from __future__ import annotations

import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moorage.cloud.results import Results, Trial
from moorage.cloud.space import Categorical, Continuous, Integer
from moorage.cloud.tune_page import PAGE, Parallel, _parallel, _rungs, commands, page, write_page
from moorage.cloud.tuning import Objective, Tuning

RANGES = (
    Continuous(name="lr", low=1e-4, high=1e-1, scaling="Logarithmic"), Integer(name="layers", low=1, high=9),
    Categorical(name="optimizer", values=("adam", "sgd", "<b>")),
)  # fmt: skip


def trial(number: int, values: tuple[float, ...], status: str = "Completed", **given: str) -> Trial:
    hyperparameters = {"lr": "0.001", "layers": "5", "optimizer": "adam", **given}
    return Trial(
        number=number, name=f"t-{number}", status=status, hyperparameters=hyperparameters, values=values,
        best=max(values, default=None), steps=10 * len(values), seconds=2.0, why="it ended", folder=Path(), model=None,
    )  # fmt: skip


def study(*trials: Trial, folder: Path = Path(), strategy: str = "hyperband") -> Results:
    tuning = Tuning(
        name="digits-260131-120000", objective=Objective(metric="val_accuracy", maximize=True), ranges=RANGES,
        strategy=strategy, trials=9, max_resource=9,
    )  # fmt: skip
    return Results(folder=folder, tuning=tuning, trials=trials, ended="all trials are made", static={"epochs": "9"})


TRIALS = (
    trial(0, (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.91, 0.92, 0.93), lr="0.01"),
    trial(1, (0.4,), "Stopped", lr="0.0001", layers="1"),
    trial(2, (0.45, 0.5, 0.55), "Stopped", lr="0.1", layers="9", optimizer="sgd"),
    trial(3, (), "Failed", optimizer="<b>"),
)


class Structure(HTMLParser):
    """Tags that are open, ids, and what polylines there are."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.lines: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "polyline":
            self.lines.append(dict(attrs))
        if tag not in ("meta", "link", "polyline", "line", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("meta", "link", "polyline", "line", "br"):
            return
        assert self.open.pop() == tag


def test_the_page_is_whole_and_runs_nothing() -> None:
    text = page(study(*TRIALS), "train.py")
    parsed = Structure()
    parsed.feed(text)
    assert parsed.open == []
    assert "<script" not in text and "http" not in re.sub(r'http-equiv|"http://www.w3.org[^"]*"', "", text)
    assert "<b>" not in text.replace("<b>lr</b>", "").replace("<b>layers</b>", "").replace(
        "<b>optimizer</b>", ""
    ).replace("<b>val_accuracy</b>", "")
    kinds = [str(line["class"]) for line in parsed.lines if str(line["class"]).startswith("trial-")]
    assert sorted(kinds) == ["trial-Stopped", "trial-Stopped", "trial-best"]
    assert "1 trial without a value" in text


def test_each_axis_is_scaled_as_its_range_is_searched() -> None:
    found = study(*TRIALS)
    chart = _parallel(found, [one for one in found.trials if one.best is not None])
    assert isinstance(chart, Parallel)
    best = next(heights for kind, _, heights in chart.lines if kind == "best")
    assert best[0] == pytest.approx(2 / 3) and best[1] == pytest.approx(0.5) and best[2] == 0
    assert [axis.name for axis in chart.axes] == ["lr", "layers", "optimizer", "val_accuracy"]
    assert [axis.left for axis in chart.axes] == [0, 33.33, 66.67, 100]
    assert chart.lines[-1][0] == "best", "drawn over the others"


def test_rungs_tell_who_came_and_who_went_on() -> None:
    found = [(rung.reports, rung.came, rung.stopped, rung.went_on, rung.best) for rung in _rungs(study(*TRIALS))]
    assert found == [(1, 3, 1, 2, 0.5), (3, 2, 1, 1, 0.7), (9, 1, 0, 1, 0.93)]
    assert list(_rungs(study(*TRIALS, strategy="random"))) == []


def test_the_commands_are_the_best_trial_s() -> None:
    run, submit = commands(study(*TRIALS), "my train.py")
    assert shlex.split(run) == [
        "moorage", "run", "my train.py", "-p", "epochs=9", "-p", "lr=0.01", "-p", "layers=5", "-p", "optimizer=adam",
    ]  # fmt: skip
    assert submit.startswith("moorage submit")
    assert list(commands(study(), "train.py")) == []


def test_a_study_without_a_trial_has_a_page_too(tmp_path: Path) -> None:
    write_page(study(folder=tmp_path), None)
    text = (tmp_path / PAGE).read_text()
    assert "No trial has a value of the objective yet." in text
    assert "No trial has reported twice." in text
