"""The report of a job whose times are known: attempts, lanes, metrics, savings, and a page that is safe to open."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from moorage.errors import ConfigError
from moorage.rehearsal import events, report_text
from moorage.rehearsal.outcome import Attempt
from moorage.rehearsal.prices import Prices, Savings
from moorage.rehearsal.report import read_report, report_data
from moorage.rehearsal.report_page import page
from moorage.rehearsal.summary import report_summary, timeline
from moorage.rehearsal.timeline import Lane, Span, folded, natural
from moorage.rehearsal.traces import Point, thinned, traces_of, traces_of_logs

BEGAN = 1_700_000_000.0


def ledger(folder: Path, number: int, host: str, *happened: tuple[float, str, dict[str, Any]]) -> None:
    """Of one attempt: (seconds since the job began, event, fields)."""
    path = folder / "ledger" / str(number) / "ledger" / f"{number:03d}-0-{host}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"event": kind, "time": BEGAN + at, **fields}) for at, kind, fields in happened]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def rehearsed(tmp_path: Path) -> Path:
    """Two attempts of 10 s each. The first came to step 60 and had saved 40, so 20 steps were done again."""
    folder = tmp_path / "digits-1"
    folder.mkdir()
    told: list[events.Event] = []
    for number, first, last, start in ((1, 0, 60, 0.0), (2, 40, 100, 10.0)):
        told.append(events.AttemptStarted(time=BEGAN + start, number=number, hosts=("algo-1",)))
        for step in range(first + 10, last + 1, 10):
            moment = BEGAN + start + 2 + (step - first) / 10
            line = f"#metric step={step} epoch=0 train_loss={1 / step:.6g}"
            told.append(events.HostLine(time=moment, host="algo-1", stream="stdout", line=line))
        if number == 1:
            told.append(events.Interrupted(time=BEGAN + 9, number=1, hard=True, host=None, step=60, why="step 60"))
        why = "interruption" if number == 1 else "finished"
        told.append(
            events.AttemptEnded(time=BEGAN + start + 10, number=number, codes={"algo-1": 0}, why=why, step=last)
        )
    (folder / "events.jsonl").write_text("".join(json.dumps(event.to_json()) + "\n" for event in told))
    ledger(
        folder, 1, "algo-1", (1, "start", {"host": "algo-1", "launch": 1}), (2, "training", {"step": 0}),
        (6, "saving", {"step": 40, "blocked": 0.5}), (6.5, "save", {"step": 40}), (8, "progress", {"step": 60}),
    )  # fmt: skip
    ledger(
        folder, 2, "algo-1", (11, "start", {"host": "algo-1", "launch": 2}), (12, "resume", {"step": 40}),
        (12, "training", {"step": 40}),
        (18, "down", {"step": 100, "at": BEGAN + 18}), (19, "leave", {"code": 0}),
    )  # fmt: skip
    outcome = {
        "name": "digits-1", "status": "Completed", "secondary": "Completed", "failure_reason": "",
        "billable_seconds": 20.0,
        "attempts": [
            {"number": 1, "started": BEGAN, "ended": BEGAN + 10, "ended_by": "interruption", "first": 10, "last": 60,
             "grace_used": None, "codes": {"algo-1": 137}},
            {"number": 2, "started": BEGAN + 10, "ended": BEGAN + 20, "ended_by": "finished", "first": 50, "last": 100,
             "grace_used": None, "codes": {"algo-1": 0}},
        ],
        "transitions": [
            {"status": "Training", "start": BEGAN, "end": BEGAN + 10, "message": ""},
            {"status": "Training", "start": BEGAN + 10, "end": BEGAN + 20, "message": ""},
        ],
        "metrics": {"train_loss": 12}, "warnings": ["<b>beware</b>"],
    }  # fmt: skip
    (folder / "outcome.json").write_text(json.dumps(outcome))
    return folder


def test_attempts_steps_and_what_was_done_again(rehearsed: Path) -> None:
    report = read_report(rehearsed)
    assert [(row.first, row.last, row.replayed, row.saves) for row in report.attempts] == [
        (0, 60, 0, 1),
        (40, 100, 20, 0),
    ]
    assert (report.steps, report.replayed, report.interruptions, report.wall) == (100, 20, 1, 20.0)
    assert [(span.kind, span.start, span.end) for span in report.phases] == [("Training", 0, 10), ("Training", 10, 20)]


def test_without_a_ledger_steps_are_those_that_were_seen(rehearsed: Path) -> None:
    shutil.rmtree(rehearsed / "ledger")
    report = read_report(rehearsed)
    assert [(row.first, row.last, row.replayed) for row in report.attempts] == [(9, 60, 0), (49, 100, 11)]
    assert report.goodput is None and [span.kind for span in report.lanes[0].spans] == ["running", "running"]
    assert "Where the time went is not known" in report.notes[0]


def test_the_spans_of_a_host_follow_each_other_and_know_what_was_done_again(rehearsed: Path) -> None:
    (lane,) = read_report(rehearsed).lanes
    assert all(one.end <= other.start for one, other in zip(lane.spans, lane.spans[1:], strict=False))
    again = [span for span in lane.spans if span.kind == "replayed"]
    assert [(span.start, span.end) for span in again] == [(12.0, 14.0)], "20 of 60 steps in 6 s"
    pause = next(span for span in lane.spans if span.kind == "pause")
    assert (pause.start, pause.end) == (5.5, 6.0)


def test_metrics_by_step_have_the_last_value_and_by_time_all(rehearsed: Path) -> None:
    data = report_data(rehearsed)
    loss = data["metrics"]["train_loss"]
    assert [step for step, _ in loss["by_step"]] == list(range(10, 101, 10))
    assert loss["count"] == len(loss["by_time"]) == 12
    json.dumps(data, allow_nan=False)


def test_what_spot_saves_is_told_for_prices_and_only_then(rehearsed: Path) -> None:
    assert read_report(rehearsed).savings is None
    savings = read_report(rehearsed, prices=Prices(on_demand=4.0, spot=1.0)).savings
    assert savings is not None
    assert savings.spot_cost == pytest.approx(20 / 3600)
    assert 8 < savings.uninterrupted < 20
    assert savings.saved == pytest.approx(4 * savings.uninterrupted / 3600 - 20 / 3600)


def test_savings_by_hand() -> None:
    savings = Savings(prices=Prices(on_demand=3.0, spot=1.0), hosts=2, billable=7200, uninterrupted=3600)
    assert (savings.on_demand_cost, savings.spot_cost, savings.saved) == (6.0, 4.0, 2.0)
    assert (savings.interruptions_cost, savings.break_even) == (2.0, 10800.0)
    lost = Savings(prices=Prices(on_demand=1.0, spot=0.9), hosts=1, billable=7200, uninterrupted=3600)
    assert lost.saved == pytest.approx(-0.8) and lost.share == pytest.approx(-0.8)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError):
            Prices(on_demand=wrong, spot=1.0)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = str(dict(attrs)["content"])
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action")]


def test_the_page_fetches_nothing_and_runs_nothing_that_a_job_wrote(rehearsed: Path) -> None:
    plain = page(read_report(rehearsed))
    outcome = json.loads((rehearsed / "outcome.json").read_text())
    outcome |= {"name": "<script>x</script>", "status": "Failed", "failure_reason": "</pre><img src=x onerror=y>"}
    (rehearsed / "outcome.json").write_text(json.dumps(outcome))
    evil = page(read_report(rehearsed))
    for text in (plain, evil):
        found = Page(text)
        assert found.tags.count("script") == 1 and "img" not in found.tags and "b" not in found.tags
        assert [link for link in found.links if not link.startswith("data:")] == []
        assert found.policy.startswith("default-src 'none'; ")
    assert "&lt;script&gt;" in evil and "Why it failed" in evil and "Why it failed" not in plain


def test_a_long_job_is_a_small_page(tmp_path: Path) -> None:
    lines = (f"#metric step={step} epoch=0 train_loss={math.sin(step) + 2:.6g}\n" for step in range(1, 100_001))
    (tmp_path / "job.log").write_text("".join(lines))
    report = read_report(tmp_path)
    assert len(report.traces["train_loss"]) == 100_000
    assert len(page(report)) < 150_000


def test_the_summary_has_the_timeline_and_savings(rehearsed: Path) -> None:
    report = read_report(rehearsed, prices=Prices(on_demand=4.0, spot=1.0))
    text = "\n".join(report_summary(report))
    assert text.startswith("digits-1: Completed, after 2 attempts")
    assert "x interrupted, | finished" in text
    assert "100, 20 done again" in text and "on demand" in text
    assert "warning: <b>beware</b>" in text


def test_a_folder_that_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tells nothing of a job"):
        read_report(tmp_path)


# Text


def attempt(started: float, ended: float, why: str) -> Attempt:
    return Attempt(
        number=1, started=started, ended=ended, ended_by=why, first=1, last=2, grace_used=None, codes={"algo-1": 0}
    )


def test_a_timeline_in_plain_text() -> None:
    line = timeline([attempt(0, 5, "interruption"), attempt(6, 8, "fault"), attempt(8, 10, "finished")], width=20)
    assert line == "==========x.====!==|"[: len(line)] and len(line) == 20
    assert timeline([attempt(3, 3, "failed")], width=5) == "!...."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (99.94, "99.9 s"),
        (99.96, "1 min 40 s"),
        (3599.6, "1 h 00 min"),
        (200_000, "2 d 8 h"),
        (-5, "−5.0 s"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert report_text.seconds_text(seconds) == text


def test_numbers_and_ticks() -> None:
    assert [report_text.number_text(value) for value in (3.0, 0.123456, 1e9, math.nan)] == [
        "3",
        "0.1235",
        "1e+09",
        "nan",
    ]
    assert [report_text.money_text(value) for value in (1234.5, 0.0123, 0.00001, -2)] == [
        "$1,234.50", "$0.0123", "$0.000010", "−$2.00",
    ]  # fmt: skip
    assert report_text.ticks(0, 10) == [0, 5, 10]
    assert report_text.time_ticks(3600) == [0, 900, 1800, 2700, 3600]
    assert report_text.tick_texts([0.0, 0.2, 0.4]) == ["0.0", "0.2", "0.4"]


# Traces and lanes


def test_logs_of_cloudwatch_have_times_and_attempts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "2026-01-31T12:00:00.500Z #metric step=10 epoch=0 train_loss=0.5\n"
        "#metric step=20 epoch=0 train_loss=0.25 broken\n"
        "2026-01-31T12:01:00Z #metric step=10 epoch=0 train_loss=0.5\nnot a #metric line\n"
    )
    first, second, again = traces_of_logs([log])["train_loss"]
    assert (first.attempt, second.attempt, again.attempt) == (1, 1, 2), "steps went back"
    assert again.time is not None and first.time is not None and again.time - first.time == 59.5
    assert second.time is None


def test_a_metric_that_regexes_found_is_taken_of_one_host() -> None:
    told: list[events.Event] = [
        events.Metric(time=1.0, host=host, name="loss", value=value, step=3)
        for host, value in (("algo-2", 1.0), ("algo-1", 2.0), ("algo-2", None))
    ]
    assert [point.text for point in traces_of(told)["loss"]] == ["1.0", "nan"]


def test_thinned_lines_keep_their_extremes() -> None:
    points = [(float(x), 0.0) for x in range(10_000)]
    points[5_003] = (5_003.0, 9.0)
    points[7_001] = (7_001.0, -9.0)
    kept = thinned(points, 100)
    assert len(kept) <= 110 and kept[0] == points[0] and kept[-1] == points[-1]
    assert (5_003.0, 9.0) in kept and (7_001.0, -9.0) in kept
    assert kept == sorted(kept)


def test_hosts_whose_time_went_alike_are_one_lane() -> None:
    lanes = [
        Lane(host=f"algo-{n}", spans=(Span(kind="training" if n != 7 else "running", start=0, end=1),))
        for n in range(20)
    ]
    made = folded(lanes, 16)
    assert [len(lane.alike) for lane in made] == [18, 0]
    assert sorted(["algo-10", "algo-2", "algo-1"], key=natural) == ["algo-1", "algo-2", "algo-10"]


def test_a_value_is_nan_where_it_is_no_number() -> None:
    assert math.isnan(Point(1, 1, "oops").value)
