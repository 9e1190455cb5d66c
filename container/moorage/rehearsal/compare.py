"""Jobs beside each other: what was set differently, what came of it, what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from moorage.errors import ConfigError
from moorage.rehearsal.report import Report, by_step
from moorage.rehearsal.report_text import money_text, number_text, percent_text, seconds_text

MOST = 8
"""Jobs on one page: more colours cannot be told apart."""

NONE = "–"
_NOT_COMPARED = frozenset({"epoch", "step"})


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of all jobs. lines: (step, value) of each job, empty where it has none."""

    name: str
    lines: tuple[list[tuple[float, float]], ...]

    def cells(self, of: Callable[[list[float]], float]) -> list[str]:
        return [number_text(of([value for _, value in line])) if line else NONE for line in self.lines]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Raises ConfigError for one job, for more than MOST, and for one that is named twice."""

    jobs: tuple[Report, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.jobs) <= MOST:
            raise ConfigError(
                f"{len(self.jobs)} cannot be compared",
                why=f"it takes from 2 to {MOST} jobs",
                fix="name their folders, or jobs of SageMaker",
            )
        folders = [job.arn or str(job.folder.resolve()) for job in self.jobs]
        if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
            raise ConfigError(f"{twice} is named twice", fix="name each job once")

    @property
    def settings(self) -> list[tuple[str, list[str]]]:
        """Name and value in each job, of those that are not the same in all."""
        names = dict.fromkeys(name for job in self.jobs for name in job.given)
        rows = [(name, [job.given.get(name, NONE) for job in self.jobs]) for name in names]
        return [(name, values) for name, values in rows if len(set(values)) > 1]

    @property
    def same(self) -> int:
        """How many settings are the same in all."""
        return len({name for job in self.jobs for name in job.given}) - len(self.settings)

    @property
    def facts(self) -> list[tuple[str, list[str]]]:
        rows = [(name, [text(job) for job in self.jobs]) for name, text in _FACTS.items()]
        return [(name, values) for name, values in rows if any(value not in (NONE, "0") for value in values)]

    @property
    def metrics(self) -> list[Metric]:
        names = dict.fromkeys(name for job in self.jobs for name in job.traces if name not in _NOT_COMPARED)
        found = [
            Metric(name=name, lines=tuple(by_step(job.traces.get(name, ())) for job in self.jobs)) for name in names
        ]
        return [metric for metric in found if any(metric.lines)]

    def text(self) -> Iterator[str]:
        """Lines for a terminal: the jobs by number, then a column for each."""
        for number, job in enumerate(self.jobs, 1):
            yield f"  {number}  {job.name}"
        rows: list[tuple[str, Sequence[str]]] = [("", [str(number) for number in range(1, len(self.jobs) + 1)])]
        for part in (self.settings, self.facts, [(metric.name, metric.cells(_last)) for metric in self.metrics]):
            rows += [("", ()), *part] if part else []
        widths = [max(len(name) for name, _ in rows)]
        widths += [max(len(cells[column]) for _, cells in rows if cells) for column in range(len(self.jobs))]
        yield ""
        for name, cells in rows:
            columns = (text.ljust(width) for text, width in zip((name, *cells), widths, strict=False))
            yield ("  " + "  ".join(columns)).rstrip()

    def to_json(self) -> dict[str, Any]:
        return {
            "settings_that_differ": {name: values for name, values in self.settings},
            "jobs": [job.to_json() for job in self.jobs],
        }


def _last(values: list[float]) -> float:
    return values[-1]


_FACTS: dict[str, Callable[[Report], str]] = {
    "status": lambda job: job.status or job.secondary or NONE,
    "steps": lambda job: str(job.steps),
    "time": lambda job: seconds_text(job.wall),
    "billable": lambda job: seconds_text(job.billable) if job.billable else NONE,
    "goodput": lambda job: percent_text(job.goodput.share, 1) if job.goodput else NONE,
    "attempts": lambda job: str(len(job.attempts)),
    "interruptions": lambda job: str(job.interruptions),
    "steps done again": lambda job: str(job.replayed),
    "cost": lambda job: NONE if job.cost is None else money_text(job.cost),
}
