"""Charts as inline SVG that stretches to its place, with text outside it so that it never does.

The drawing has a coordinate system of its own, from 0 to SCALE both ways; ticks are HTML placed by percentages. So one
chart fits a phone, a screen and paper, and needs no script.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from moorage.rehearsal.report_text import seconds_text, tick_texts, ticks, time_tick_text, time_ticks
from moorage.rehearsal.timeline import Lane, Mark, Span

SCALE = 10_000
FEW = 40
"""Values that are shown one by one."""
_CLOSE = 0.004
"""Of the width: marks closer than that cannot be told apart."""

Pairs = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """low, high: what its ends are. places: (percent from its low end, label) of the ticks."""

    low: float
    high: float
    places: tuple[tuple[float, str], ...]

    def at(self, value: float) -> int:
        """From 0 to SCALE."""
        return round(SCALE * (value - self.low) / ((self.high - self.low) or 1.0))


def number_axis(values: Iterable[float], *, padded: bool = False) -> Axis:
    low, high = _range(values)
    if high == low:
        low, high = low - (abs(low) or 1.0) * 0.5, high + (abs(high) or 1.0) * 0.5
    elif padded:
        low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    marks = ticks(low, high)
    return _axis(low, high, marks, tick_texts(marks))


def step_axis(last: float) -> Axis:
    marks = [mark for mark in ticks(0.0, max(1.0, last)) if mark == int(mark)]
    return _axis(0.0, max(1.0, last), marks, [f"{mark:,.0f}" for mark in marks])


def time_axis(length: float) -> Axis:
    length = length or 1.0
    marks = time_ticks(length)
    return _axis(0.0, length, marks, [time_tick_text(mark, length) for mark in marks])


def _axis(low: float, high: float, marks: Sequence[float], texts: Sequence[str]) -> Axis:
    places = tuple((round(100 * (mark - low) / (high - low), 2), text) for mark, text in zip(marks, texts, strict=True))
    return Axis(low=low, high=high, places=places)


def _range(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return (min(found), max(found)) if found else (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """One metric over steps or time. faint: what was written before it was done again. rules: where the job was
    interrupted, on the x axis. label: what a reader who cannot see it is told. unit: of x, as the readout names it.
    many: the lines are of several jobs, each with the colour of its number."""

    label: str
    x: Axis
    y: Axis
    lines: tuple[Pairs, ...]
    faint: tuple[Pairs, ...] = ()
    rules: tuple[float, ...] = ()
    unit: str = "step"
    many: bool = False

    def svg(self) -> Markup:
        grid = "".join(
            f'<line class="grid" x1="0" x2="{SCALE}" y1="{y}" y2="{y}"/>'
            for y in (round(SCALE - SCALE * at / 100) for at, _ in self.y.places)
        )
        rules = "".join(
            f'<line class="rule" x1="{x}" x2="{x}" y1="0" y2="{SCALE}"/>' for x in map(self.x.at, self.rules)
        )
        lines = "".join(self._line("faint", pairs) for pairs in self.faint if pairs)
        lines += "".join(
            self._line(f"line job-{number}" if self.many else "line", pairs)
            for number, pairs in enumerate(self.lines, 1)
            if pairs
        )
        if not self.many and sum(map(len, self.lines)) <= FEW:
            lines += self._dots()
        return Markup(
            f'<svg viewBox="0 0 {SCALE} {SCALE}" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(self.label)}" data-x="{self.x.low:.9g} {self.x.high:.9g}" '
            f'data-y="{self.y.low:.9g} {self.y.high:.9g}" data-unit="{self.unit}">{grid}{rules}{lines}</svg>'
        )

    def _line(self, kind: str, pairs: Pairs) -> str:
        places = [(self.x.at(x), SCALE - self.y.at(y)) for x, y in pairs]
        return f'<polyline class="{kind}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'

    def _dots(self) -> str:
        """Lines without length and with round caps: dots, however the drawing is stretched."""
        places = [(self.x.at(x), SCALE - self.y.at(y)) for pairs in self.lines for x, y in pairs]
        return f'<path class="dots" d="{"".join(f"M{x},{y}h0" for x, y in places)}"/>'


def lane_svg(lane: Lane, length: float) -> Markup:
    """The spans of one host, from 0 to `length` seconds."""
    axis = time_axis(length)
    parts = []
    for span in drawn(lane.spans, length):
        start = axis.at(span.start)
        title = escape(f"{kind_text(span.kind)}, {seconds_text(span.end - span.start)} from {seconds_text(span.start)}")
        detail = escape(f": {span.text}" if span.text else "")
        parts.append(
            f'<rect class="{span.kind}" x="{start}" width="{max(12, axis.at(span.end) - start)}" height="10">'
            f"<title>{title}{detail}</title></rect>"
        )
    return Markup(
        f'<svg viewBox="0 0 {SCALE} 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(lane_text(lane))}">{"".join(parts)}</svg>'
    )


def drawn(spans: Sequence[Span], length: float) -> list[Span]:
    """Those that are wide enough to be seen; a pause of a millisecond gives way to the training around it."""
    made: list[Span] = []
    for span in spans:
        if made and span.end - span.start < 0.0007 * length:
            last = made[-1]
            made[-1] = Span(kind=last.kind, start=last.start, end=span.end, text=last.text)
        elif made and made[-1].kind == span.kind and span.start - made[-1].end < 1e-9:
            made[-1] = Span(kind=span.kind, start=made[-1].start, end=span.end, text=span.text)
        else:
            made.append(span)
    return made


def lane_text(lane: Lane) -> str:
    sums: dict[str, float] = {}
    for span in lane.spans:
        sums[span.kind] = sums.get(span.kind, 0.0) + span.end - span.start
    return f"{lane.host}: " + ", ".join(f"{kind_text(kind)} {seconds_text(total)}" for kind, total in sums.items())


_SHAPES = {
    "save": '<circle r="3"/>',
    "resume": '<path d="M-3,-4.5 5,0 -3,4.5z"/>',
    "stop": '<rect x="-3.5" y="-3.5" width="7" height="7"/>',
    "cut": '<path d="M-4,0 4,0"/>',
    "warning": '<circle r="3.5"/>',
    "fault": '<path d="M0,-5 5,4 -5,4z"/>',
    "failure": '<path d="M-4,-4 4,4 M4,-4 -4,4"/>',
    "interruption": '<path d="M0,-5.5 5.5,0 0,5.5 -5.5,0z"/>',
}
"""From the one that says least."""


def shape(kind: str) -> Markup:
    """One mark alone, for the legend."""
    return Markup(f'<svg class="key {escape(kind)}" viewBox="-7 -7 14 14" aria-hidden="true">{_SHAPES[kind]}</svg>')


def marks_svg(marks: Sequence[Mark], length: float, label: str) -> Markup:
    """Marks in one row. Of those at one place, one is drawn, and its title tells of all."""
    groups: list[list[Mark]] = []
    for mark in marks:
        if groups and mark.time - groups[-1][0].time < _CLOSE * length and mark.kind == groups[-1][0].kind:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    parts = []
    # Where two kinds meet, the one that says more is on top.
    order = list(_SHAPES)
    for group in sorted(groups, key=lambda group: order.index(group[0].kind)):
        at = 100 * group[0].time / (length or 1.0)
        texts = [
            f"{seconds_text(mark.time)}: {mark.text}{f' ({mark.host})' if mark.host else ''}" for mark in group[:8]
        ]
        title = escape("\n".join([*texts, *([f"and {len(group) - 8} more"] if len(group) > 8 else [])]))
        parts.append(
            f'<svg x="{at:.2f}%" y="50%" overflow="visible"><g class="mark {escape(group[0].kind)}">'
            f"<title>{title}</title>{_SHAPES[group[0].kind]}</g></svg>"
        )
    return Markup(f'<svg class="marks" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>')


def bar_svg(parts: Sequence[tuple[str, float]], label: str) -> Markup:
    """One bar of parts, in their order, as wide as its place."""
    total = sum(seconds for _, seconds in parts) or 1.0
    made, at = [], 0.0
    for kind, seconds in parts:
        if seconds <= 0:
            continue
        title = escape(f"{kind_text(kind)}: {seconds_text(seconds)}, {seconds / total:.1%}")
        x, width = round(SCALE * at / total), round(SCALE * seconds / total)
        made.append(f'<rect class="{kind}" x="{x}" width="{width}" height="10"><title>{title}</title></rect>')
        at += seconds
    return Markup(
        f'<svg class="bar" viewBox="0 0 {SCALE} 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(made)}</svg>'
    )


_KINDS = {
    "start_up": "start-up",
    "training": "training",
    "useful": "useful steps",
    "replayed": "steps done again",
    "pause": "pause for a save",
    "running": "running",
    "idle": "nobody there",
}


def kind_text(kind: str) -> str:
    return _KINDS.get(kind, kind)
