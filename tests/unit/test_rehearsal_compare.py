"""Jobs beside each other: only what differs is named, and every number is of the job whose column it is in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moorage.cli.app import main
from moorage.contract.config import JobConfig
from moorage.errors import ConfigError
from moorage.rehearsal.compare import Comparison
from moorage.rehearsal.compare_page import page
from moorage.rehearsal.prices import Prices
from moorage.rehearsal.report import read_report

BEGAN = 1_700_000_000.0


def job(folder: Path, *, seconds: float, loss: float, **given: str) -> Path:
    """Checkpoints' ledger of one attempt, and the log beside it: 10 steps in `seconds`."""
    (folder / "ledger").mkdir(parents=True)
    events: list[tuple[float, str, dict[str, Any]]] = [
        (0, "start", {"host": "algo-1", "launch": 1, "attempt": 0, "world_size": 2, "given": given}),
        (1, "training", {"step": 0}),
        (1 + seconds, "progress", {"step": 10}),
        (2 + seconds, "down", {"step": 10, "codes": [0]}),
        (2 + seconds, "leave", {"code": 0}),
    ]
    lines = [json.dumps({"event": kind, "time": BEGAN + at, **fields}) for at, kind, fields in events]
    (folder / "ledger" / "1-0-algo-1.jsonl").write_text("\n".join(lines))
    log = [f"#metric step={step} epoch=0 train_loss={loss / step}" for step in (1, 5, 10)]
    (folder / "train.log").write_text("\n".join(log))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    slow = job(tmp_path / "slow", seconds=8, loss=1, lr="0.1", epochs="3", moorage_strategy="ddp")
    fast = job(tmp_path / "<fast>", seconds=2, loss=2, lr="0.3", epochs="3")
    return slow, fast


def test_what_differs_and_what_came_of_it(two: tuple[Path, Path]) -> None:
    prices = Prices(on_demand=3600, spot=360)
    compared = Comparison(jobs=tuple(read_report(folder, prices=prices) for folder in two))
    assert compared.settings == [("lr", ["0.1", "0.3"]), ("moorage_strategy", ["ddp", "–"])]
    assert compared.same == 2
    facts = dict(compared.facts)
    assert facts["steps"] == ["10", "10"] and facts["time"] == ["10.0 s", "4.0 s"]
    assert facts["goodput"] == ["80.0 %", "50.0 %"] and facts["cost"] == ["$1.00", "$0.4000"]
    assert "interruptions" not in facts
    (metric,) = compared.metrics
    assert list(metric.lines) == [[(1, 1.0), (5, 0.2), (10, 0.1)], [(1, 2.0), (5, 0.4), (10, 0.2)]]

    text = [line.split() for line in compared.text()]
    assert ["lr", "0.1", "0.3"] in text and ["train_loss", "0.1", "0.2"] in text
    html = page(compared)
    assert "&lt;fast&gt;" in html and "<fast>" not in html and "<script" not in html
    assert html.count('class="line job-1"') == html.count('class="line job-2"') == 1


def test_the_command(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "page.html"
    assert main(["compare", str(two[0]), str(two[1]), "-o", str(output), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["settings_that_differ"]["lr"] == ["0.1", "0.3"]
    assert output.read_text().startswith("<!DOCTYPE html>")
    assert main(["compare", str(two[0]), str(two[1]), "-o", str(tmp_path / "no" / "page.html")]) == 78
    assert "cannot be written" in capsys.readouterr().err


def test_what_cannot_be_compared(two: tuple[Path, Path]) -> None:
    slow, fast = map(read_report, two)
    with pytest.raises(ConfigError, match="1 cannot be compared"):
        Comparison(jobs=(slow,))
    with pytest.raises(ConfigError, match="is named twice"):
        Comparison(jobs=(slow, fast, slow))


def test_what_the_ledger_is_given_has_no_secret(tmp_path: Path) -> None:
    config = tmp_path / "input" / "config"
    config.mkdir(parents=True)
    (config / "resourceconfig.json").write_text('{"current_host": "algo-1", "hosts": ["algo-1", "algo-2"]}')
    (config / "hyperparameters.json").write_text(
        json.dumps({"lr": "0.1", "api_key": "hidden", "moorage_keep": "7", "sagemaker_job_name": '"x"'})
    )
    found = JobConfig.read({"SAGEMAKER_BASE_DIR": str(tmp_path), "MOORAGE_PRECISION": "bf16"}).given()
    assert found == {
        "lr": "0.1", "api_key": "********", "moorage_keep": "7", "moorage_precision": "bf16", "hosts": "2",
        "instance_type": "local",
    }  # fmt: skip
