"""The account of a job's time: its parts add up, whatever was interrupted or torn off, and whatever the clocks say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.cli import main
from moorage.contract.goodput import Goodput, measure
from moorage.contract.ledger import Record, read_ledger

HOUR = 3600.0


def record(*events: tuple[float, str, dict[str, Any]], host: str = "a", launch: int = 1, attempt: int = 0) -> Record:
    made = tuple({"event": kind, "time": moment, **facts} for moment, kind, facts in events)
    return Record(host=host, launch=launch, attempt=attempt, events=made)


def of(*records: Record) -> Goodput:
    found = measure(sorted(records, key=lambda one: one.key))
    assert found is not None
    assert found.parts.total == pytest.approx(found.wall, abs=1e-6)
    return found


def seconds(goodput: Goodput) -> dict[str, float]:
    return {name: round(value, 6) for name, value in asdict(goodput.parts).items() if value > 1e-9}


def first(shift: float = 0.0, host: str = "a") -> Record:
    """10 s of start-up, 100 steps of 1 s, a save that paused 2 s, an evaluation of 8 s; killed at step 100."""
    return record(
        (shift + 0, "start", {}),
        (shift + 10, "training", {"step": 0}),
        (shift + 62, "saving", {"step": 50, "blocked": 2.0}),
        (shift + 65, "save", {"step": 50, "pause": 2.0, "seconds": 5}),
        (shift + 92, "evaluating", {"step": 80}),
        (shift + 100, "evaluated", {"step": 80}),
        (shift + 123, "failed", {"rank": 0}),
        (shift + 124, "down", {"step": 100, "at": shift + 120}),
        (shift + 124.5, "attempt-failed", {"step": 100}),
        host=host,
    )


def second(shift: float = 0.0, host: str = "a", **place: int) -> Record:
    """Goes on at step 50, after 6 s without anybody: 50 steps again, then 50 that are new; the end takes 9 s."""
    return record(
        (shift + 130.5, "start", {}),
        (shift + 134, "resume", {"step": 50}),
        (shift + 135.5, "training", {"step": 50}),
        (shift + 165.5, "progress", {"step": 80}),
        (shift + 195.5, "progress", {"step": 110}),
        (shift + 236.5, "saving", {"step": 150, "blocked": 1.0}),
        (shift + 237.5, "finished", {"step": 150}),
        (shift + 245, "down", {"step": 150, "at": shift + 235.5}),
        (shift + 245.5, "leave", {"code": 0}),
        host=host,
        **{"attempt": 1, **place},
    )


WHOLE = {"useful": 150.0, "replayed": 50.0, "pause": 3.0, "evaluation": 8.0, "start_up": 15.0, "ending": 13.5,
         "idle": 6.0}  # fmt: skip


def test_every_second_of_a_job_has_its_part() -> None:
    goodput = of(first(), second())
    assert seconds(goodput) == WHOLE
    assert goodput.wall == 245.5 and goodput.steps == 150
    assert goodput.share == pytest.approx(150 / 245.5)
    assert [(one.first, one.last) for one in goodput.attempts] == [(0, 100), (50, 150)]


@pytest.mark.parametrize("shift", [HOUR, -HOUR])
def test_a_clock_an_hour_off_on_one_host_changes_nothing(shift: float) -> None:
    goodput = of(first(), second(), first(shift, host="b"), second(shift, host="b"))
    assert seconds(goodput) == WHOLE
    assert goodput.attempts[0].hosts == ("a", "b")


def test_attempts_go_by_their_numbers_where_a_replaced_host_has_another_clock() -> None:
    goodput = of(second(-HOUR, launch=2, attempt=0), first())
    # How long nobody trained cannot be known then; all else can.
    assert seconds(goodput) == {name: value for name, value in WHOLE.items() if name != "idle"}
    assert goodput.attempts[-1].launch == 2


def test_a_host_that_vanished_left_what_it_had_written() -> None:
    events = [(event["time"], event["event"], event) for event in first().events][:5]
    goodput = of(record(*events), second())
    # 80 steps are known: of the 100 that follow, the first 30 are done again.
    assert goodput.parts.useful == pytest.approx(150)
    assert goodput.parts.replayed == pytest.approx(30)
    assert goodput.parts.idle == pytest.approx(130.5 - 92)


def test_an_attempt_that_never_trained_is_start_up() -> None:
    failed = record((0.0, "start", {}), (7.0, "failed", {}), (8.0, "down", {"step": 0, "at": 1.0}))
    assert seconds(of(failed, second())) == {
        "useful": 100.0, "pause": 1.0, "start_up": 13.0, "ending": 9.0, "idle": 122.5
    }  # fmt: skip


def test_a_save_that_took_more_of_the_steps_after_it_is_counted_in_full() -> None:
    made = record(
        (0.0, "start", {}), (1.0, "training", {"step": 0}), (11.0, "saving", {"step": 9, "blocked": 1.0}),
        (21.0, "save", {"step": 9, "pause": 3.0}), (31.0, "down", {"step": 30, "at": 31.0}),
    )  # fmt: skip
    assert seconds(of(made)) == {"useful": 27.0, "pause": 3.0, "start_up": 1.0}


def test_a_program_without_a_run_has_no_account() -> None:
    assert measure([]) is None
    assert measure([record((0.0, "start", {}), (9.0, "down", {"step": None, "at": None}))]) is None


KINDS = ["start", "training", "progress", "saving", "save", "evaluating", "evaluated", "stop", "failed", "down",
         "finished", "leave", "resume", "who knows"]  # fmt: skip
MOMENTS = st.one_of(st.floats(0, 1000), st.floats(-1e6, 1e6))
FACTS = st.fixed_dictionaries(
    {},
    optional={
        "step": st.one_of(st.integers(-5, 500), st.none(), st.text(max_size=3), st.booleans()),
        "blocked": st.one_of(st.floats(), st.none(), st.text(max_size=3)),
        "pause": st.floats(),
        "at": st.one_of(st.floats(), st.none()),
    },
)
RECORDS = st.builds(
    lambda events, host, launch, attempt: record(*events, host=host, launch=launch, attempt=attempt),
    st.lists(st.tuples(MOMENTS, st.sampled_from(KINDS), FACTS), max_size=12),
    st.sampled_from("ab"),
    st.integers(0, 3),
    st.integers(0, 2),
)


@given(st.lists(RECORDS, max_size=6))
def test_the_parts_of_any_ledger_add_up_and_none_is_negative(records: list[Record]) -> None:
    goodput = measure(sorted(records, key=lambda one: one.key))
    if goodput is not None:
        assert goodput.parts.total == pytest.approx(goodput.wall, rel=1e-9, abs=1e-6)
        assert all(value >= -1e-6 for value in asdict(goodput.parts).values())
        assert 0 <= goodput.share <= 1 + 1e-9
        json.dumps(goodput.to_json(), allow_nan=False)
        assert len(goodput.table()) == 8


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=6))
def test_each_step_is_useful_once(attempts: list[tuple[int, int]]) -> None:
    """Steps of one second each; every attempt goes on at some step that was done, and does some more."""
    records, best, again = [], 0, 0
    for number, (back, steps) in enumerate(attempts):
        at = max(0, best - back)
        marks = [(float(2 + done), "progress", {"step": at + done}) for done in range(7, steps, 7)]
        down = (2.0 + steps, "down", {"step": at + steps, "at": 2.0 + steps})
        records.append(
            record((0.0, "start", {}), (2.0, "training", {"step": at}), *marks, down, launch=1, attempt=number)
        )
        again += min(at + steps, best) - at
        best = max(best, at + steps)
    goodput = of(*records)
    assert goodput.parts.useful == pytest.approx(best)
    assert goodput.parts.replayed == pytest.approx(again)


def write(folder: Path, *records: Record, torn: bytes = b"") -> None:
    (folder / "ledger").mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(records):
        start = {"launch": one.launch, "attempt": one.attempt, "host": one.host}
        events = [{**event, **(start if event["event"] == "start" else {})} for event in one.events]
        text = "".join(json.dumps(event) + "\n" for event in events)
        (folder / "ledger" / f"{number}.jsonl").write_bytes(text.encode() + torn)


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, first(), second(), torn=b'{"event": "down", "time": 9999')
    assert seconds(of(*read_ledger(tmp_path))) == WHOLE


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, first(), second())
    for folder in (tmp_path, tmp_path / "ledger"):
        assert main(["goodput", str(folder)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "goodput 61.1% of 245.5 s: 150 steps, 2 attempts on 1 host"
        assert lines[2].split() == ["replayed", "50.0", "s", "20.4%"]
        assert main(["goodput", str(folder), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["seconds"] == WHOLE and found["goodput"] == 0.611
    assert main(["goodput", str(tmp_path / "absent")]) == 74
    assert "has no ledger of a training" in capsys.readouterr().err
