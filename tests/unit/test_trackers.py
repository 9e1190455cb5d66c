"""Trackers: fed through accelerate, clear when they cannot start, and no danger to the training."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from moorage.errors import ConfigError
from moorage.training.trackers import Trackers

pytest.importorskip("tensorboard")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_metrics_reach_tensorboard(tmp_path: Path) -> None:
    trackers = Trackers(("tensorboard", "tensorboard"), "job-1", tmp_path, {"lr": "0.1"})
    trackers.log({"loss": 0.5}, step=1)
    trackers.log({"loss": 0.25}, step=2)
    trackers.finish()
    assert scalars(tmp_path / "job-1")["loss"] == [(1, 0.5), (2, 0.25)]


def test_an_unknown_tracker_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tensorbord'.*did you mean tensorboard\?"):
        Trackers(("tensorbord",), "job", tmp_path, {})


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs the package aim.*requirements\.txt"):
        Trackers(("aim",), "job", tmp_path, {})


def test_a_tracker_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"'tensorboard' does not start.*(NotADirectoryError|FileExistsError)"):
        Trackers(("tensorboard",), "job", tmp_path / "file", {})


def test_one_that_fails_later_is_logged_once_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trackers = Trackers(("tensorboard",), "job", tmp_path, {})
    with caplog.at_level(logging.WARNING, "moorage"):
        for step in range(3):
            trackers.log({"loss": object()}, step=step)  # type: ignore[dict-item]
            trackers.log({"loss": {"a": "not a number"}}, step=step)  # type: ignore[dict-item]
        trackers.finish()
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "tracker tensorboard failed and is left out from now on"
    ]
