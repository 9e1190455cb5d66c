"""A rehearsal as it happens, on stderr: what is told, the hosts' logs, and on a terminal one line that lives."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from moorage.cli.terminal import logged, narrate, narrator

if TYPE_CHECKING:
    from rich.text import Text

    from moorage.rehearsal.events import Event, Metric
    from moorage.rehearsal.job import Job

_STYLES = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green", "bright_magenta")
_SHOWN = 4
"""Metrics in the line that lives."""


class Logs(StrEnum):
    """Whose lines are shown. MAIN: those of the first host, which has rank 0."""

    ALL = "all"
    MAIN = "main"
    NONE = "none"


class Show:
    """A listener of `rehearse`; a context, in which the line lives. only: of the logs, lines in which it is found."""

    def __init__(self, job: Job, *, logs: Logs = Logs.ALL, only: re.Pattern[str] | None = None, quiet: bool = False):
        from rich.live import Live

        self._names = job.host_names
        self._wanted = {Logs.ALL: self._names, Logs.MAIN: self._names[:1], Logs.NONE: ()}[Logs.NONE if quiet else logs]
        self._only = only
        self._width = max(map(len, self._names))
        self._console = narrator(quiet=quiet)
        self._state, self._copying = "", ""
        self._step: int | None = None
        self._metrics: dict[str, float] = {}
        self._steps: deque[tuple[float, int]] = deque(maxlen=20)
        self._begun = time.monotonic()
        self._log = logged(self.tell)
        self._live = Live(
            console=self._console, get_renderable=self._line, refresh_per_second=8, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip

    def __enter__(self) -> Show:
        self._log.__enter__()
        if self._console.is_terminal and not self._console.quiet:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        self._log.__exit__(None, None, None)

    def tell(self, text: str, style: str = "") -> None:
        narrate(self._console, text, style)

    def asked_to_stop(self, again: bool) -> None:
        """Safe to be called by a signal handler, which may have come in the middle of a print."""
        text = "killing the job" if again else "stopping the job as StopTrainingJob does; Ctrl-C again kills it"
        threading.Thread(target=self.tell, args=(text, "bold yellow"), daemon=True).start()

    def __call__(self, event: Event) -> None:
        from moorage.rehearsal import events

        match event:
            case events.HostLine():
                self._logged(event.host, event.line)
            case events.Metric():
                self._measured(event)
            case events.Copied(done=done, total=total):
                self._copying = f"{event.what}: {done / total:.0%} of {total / 1e6:.1f} MB" if done < total else ""
            case events.Synced(action="cut"):
                self.tell(f"{event.host}: the upload of {event.file} was cut", "yellow")
            case events.Phase(secondary=secondary):
                self._state, self._copying = secondary, ""
                style = {"Completed": "bold green", "Failed": "bold red"}.get(secondary, "")
                self.tell(f"{secondary}: {event.message}", style)
            case events.Note(level="warning"):
                self.tell(f"warning: {event.text}", "yellow")
            case events.Note():
                self.tell(event.text)
            case events.AttemptStarted():
                self._steps.clear()
                self.tell(f"attempt {event.number} on {', '.join(event.hosts)}")
            case events.AttemptEnded():
                codes = ", ".join(f"{host} {code}" for host, code in event.codes.items())
                self.tell(f"attempt {event.number} ended{_at(event.step)}: {event.why}; exit codes: {codes}")
            case events.Interrupted():
                how = "SIGKILL" if event.hard else "SIGTERM"
                whom = event.host or "all hosts"
                self.tell(f"interruption {event.number}{_at(event.step)}: {how} to {whom} ({event.why})", "bold yellow")
            case events.Faulted(over=True):
                self.tell(f"fault {event.kind} on {event.host} is over")
            case events.Faulted():
                self.tell(f"fault {event.kind} on {event.host}{_at(event.step)}", "bold yellow")

    def _measured(self, event: Metric) -> None:
        if event.step is not None and event.step != self._step:
            self._step = event.step
            self._steps.append((event.time, event.step))
        if event.value is not None:
            self._metrics.pop(event.name, None)
            self._metrics[event.name] = event.value

    def _logged(self, host: str, said: str) -> None:
        if host not in self._wanted or (self._only and not self._only.search(said)):
            return
        from rich.text import Text

        style = _STYLES[self._names.index(host) % len(_STYLES)]
        # A program may colour its lines; nothing else of what steers a terminal comes through.
        line = Text.from_ansi(said) if self._console.is_terminal else Text(_plain(said))
        self._console.print(Text.assemble((f"{host:<{self._width}} | ", style), line))

    def _line(self) -> Text:
        from rich.text import Text

        seconds = int(time.monotonic() - self._begun)
        parts = [f"{seconds // 60}:{seconds % 60:02d}", self._copying or self._state]
        if self._step is not None and not self._copying:
            parts.append(f"step {self._step}" + (f", {rate:.3g}/s" if (rate := self._rate()) else ""))
            parts += [f"{name}={value:.4g}" for name, value in list(self._metrics.items())[-_SHOWN:]]
        return Text("  ".join(part for part in parts if part), style="reverse", no_wrap=True, overflow="ellipsis")

    def _rate(self) -> float:
        """Steps per second, over the last metric lines of the attempt."""
        if len(self._steps) < 2:
            return 0.0
        (start, low), (end, high) = self._steps[0], self._steps[-1]
        return (high - low) / (end - start) if end > start and high > low else 0.0


_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def _plain(line: str) -> str:
    return _CONTROL.sub("", line)


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step}"


def announced(job: Job, origin: Mapping[str, str]) -> list[str]:
    """What is about to be rehearsed, before anything is started. origin: of what was chosen, why."""
    from moorage.rehearsal.assemble import interruptions_and_faults

    what = f"{job.name}: {job.program or 'the program of the image'} on {job.hosts} host{'s' * (job.hosts > 1)}"
    where = f"in containers of {job.image}" if job.engine == "docker" else "as plain processes of this machine"
    lines = [f"{what}, {where}", f"its folder is {job.folder}"]
    if events := interruptions_and_faults(job):
        lines.append(f"to go wrong: {', '.join(events)}")
    return [*lines, *(f"{name}: {why}" for name, why in origin.items())]
