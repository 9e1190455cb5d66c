"""Whole lines from any pieces of bytes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from moorage.processes.lines import CONTINUED, Lines

TEXT = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\xff\xfe", "é".encode(), b"x" * 9]), max_size=60).map(b"".join)
WITH_BARS = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r", b"\r\n", b"12%"]), max_size=60).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=12)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def said(lines: Lines, parts: list[bytes], every: float = 0.0) -> list[bytes]:
    """`every`: seconds between two pieces."""
    found = [line for number, part in enumerate(parts) for line in lines.feed(part, number * every)]
    return found + lines.close()


@given(TEXT, CUTS)
def test_lines_are_those_of_the_whole_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()  # what ends with a newline has no line after it
    assert said(Lines(), pieces(data, cuts)) == expected


@given(WITH_BARS, CUTS, st.sampled_from([0.0, 1.0, 100.0]))
def test_the_last_state_of_every_bar_is_said_and_nothing_is_invented(
    data: bytes, cuts: list[int], every: float
) -> None:
    found = said(Lines(), pieces(data, cuts), every)
    drawn = {state for line in data.split(b"\n") for state in line.split(b"\r")}
    assert all(b"\n" not in line and b"\r" not in line for line in found)
    assert set(found) <= drawn
    last = [states[-1] for line in data.split(b"\n") if (states := [state for state in line.split(b"\r") if state])]
    rest = iter(found)
    assert all(state in rest for state in last), "the last states, in order, among what was said"


def test_a_bar_of_a_thousand_states_is_a_few_lines() -> None:
    lines = Lines(progress_every=5.0)
    found = []
    for step in range(1001):
        found += lines.feed(f"\r{step / 10:.1f}%".encode(), step * 0.02)  # 20 s in all
    found += lines.feed(b"\n", 20.1)
    assert found[-1] == b"100.0%"
    assert 4 <= len(found) <= 6


def test_a_bar_that_stands_still_is_said_when_it_is_due() -> None:
    lines = Lines(progress_every=5.0)
    assert lines.feed(b"\r10%\r", 0.0) == [b"10%"]
    assert lines.feed(b"20%", 1.0) == []
    assert (lines.due_at, lines.due(4.9)) == (5.0, [])
    assert (lines.due(5.0), lines.due_at) == ([b"20%"], None)
    assert lines.feed(b"\n", 6.0) == [], "it has been said"


def test_a_carriage_return_before_a_newline_adds_nothing() -> None:
    assert said(Lines(), [b"one\r\ntwo\r\n\r\n"]) == [b"one", b"two"]
    assert said(Lines(), [b"one\r", b"\ntwo"]) == [b"one", b"two"]


def test_a_line_without_end_takes_bounded_memory() -> None:
    lines = Lines(longest=1000)
    found = [line for _ in range(25) for line in lines.feed(b"x" * 99, 0.0)] + lines.feed(b"\nnext\n", 0.0)
    assert found == [b"x" * 1000 + CONTINUED] * 2 + [b"x" * 475, b"next"]


@given(CUTS)
def test_a_long_line_is_cut_at_the_same_places_however_it_comes(cuts: list[int]) -> None:
    data = bytes(range(32, 127)) * 3 + b"\nend"
    assert said(Lines(longest=50), pieces(data, cuts)) == said(Lines(longest=50), [data])
