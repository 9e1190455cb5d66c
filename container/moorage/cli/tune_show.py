"""A study as it happens, on stderr: a line where something is decided, and on a terminal one that lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from moorage.cli.terminal import logged, narrate, narrator

if TYPE_CHECKING:
    from rich.text import Text

    from moorage.cloud.told import Over, Told
    from moorage.cloud.tuning import Tuning


class TuneShow:
    """Is told what happens; a context, in which the line lives."""

    def __init__(self, tuning: Tuning, *, over: int = 0, quiet: bool = False):
        from rich.live import Live

        self._tuning, self._over = tuning, over
        self._console = narrator(quiet=quiet)
        self._running = 0
        self._best: tuple[int, float] | None = None
        self._begun = time.monotonic()
        self._log = logged(self.tell)
        self._live = Live(
            console=self._console, get_renderable=self._line, refresh_per_second=4, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip

    def __enter__(self) -> TuneShow:
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
        text = "killing the trials" if again else "stopping the trials, their state saved; Ctrl-C again kills them"
        threading.Thread(target=self.tell, args=(text, "bold yellow"), daemon=True).start()

    def __call__(self, told: Told) -> None:
        from moorage.cloud import told as kinds

        # The best trial grows better with each epoch: told is when it is another one.
        overtaken = told.best is not None and self._best is not None and told.best[0] != self._best[0]
        self._running, self._best = told.running, told.best
        match told:
            case kinds.Began(again=again, hyperparameters=values):
                self.tell(f"trial {told.number}{' goes on' if again else ''}: {settings(values)}")
            case kinds.Reported(value=value, count=count) if overtaken and told.best == (told.number, value):
                self.tell(
                    f"trial {told.number}: {self._metric} {value:.6g} at report {count}, the best so far", "green"
                )
            case kinds.Over():
                self._over = told.over
                self.tell(self._ended(told), "" if told.state != "failed" else "yellow")

    @property
    def _metric(self) -> str:
        return self._tuning.objective.metric

    def _ended(self, told: Over) -> str:
        most = f" of {self._tuning.max_resource}" if self._tuning.max_resource else ""
        after = f" after {told.count}{most} reports" if told.state in ("stopped", None) else ""
        value = "" if told.value is None else f", {self._metric} {told.value:.6g}"
        best = "" if told.best is None else f"; best {told.best[1]:.6g} (trial {told.best[0]})"
        return f"trial {told.number} {_how(told)}{after}{value}{best}; {told.over} of {self._tuning.total} are over"

    def _line(self) -> Text:
        from rich.text import Text

        seconds = int(time.monotonic() - self._begun)
        parts = [
            f"{seconds // 60}:{seconds % 60:02d}",
            f"{self._over} of {self._tuning.total} trials are over, {self._running} at work",
        ]
        if self._best is not None:
            parts.append(f"best {self._metric} {self._best[1]:.6g} (trial {self._best[0]})")
        return Text("  ".join(parts), style="reverse", no_wrap=True, overflow="ellipsis")


def _how(told: Over) -> str:
    if told.state == "failed":
        return f"failed: {told.why.splitlines()[0] if told.why else 'it does not say why'}"
    return {None: "is put off", "stopped": "is stopped", "complete": "is complete"}[told.state]


def settings(values: Mapping[str, str]) -> str:
    """`lr=0.00123 batch_size=32`, numbers short."""
    return " ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: str) -> str:
    try:
        return value if value.lstrip("+-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value
