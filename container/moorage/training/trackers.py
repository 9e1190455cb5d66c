"""Experiment trackers of rank 0: MLflow's run of the job, and others by name through accelerate's adapters."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from moorage.errors import ConfigError
from moorage.training.tracking import Recorder
from moorage.training.tracking.lineage import resumed

log = logging.getLogger("moorage")


class Trackers:
    """The trackers of one rank, which should be rank 0 alone."""

    def __init__(
        self,
        names: Iterable[str],
        run_name: str,
        folder: Path,
        config: Mapping[str, Any],
        recorder: Recorder | None = None,
    ) -> None:
        """Start each tracker of `names` and give it `config`.

        folder: where those that write files do so. recorder: the run in MLflow, which accelerate then has no part in.
        Raises ConfigError for a tracker that accelerate does not know, whose package is missing, or that does not
        start.
        """
        self._recorder = recorder
        wanted = [name for name in dict.fromkeys(names) if not (recorder and name == "mlflow")]
        self._trackers = {name: _start(name, run_name, folder, config) for name in wanted}

    def resumed(self, step: int) -> None:
        """Training goes on from the checkpoint of `step`."""
        if self._recorder is not None:
            self._recorder.tag(resumed(step))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Give `metrics` to each tracker. One that fails is left out from then on, and training goes on."""
        if self._recorder is not None:
            self._recorder.log(metrics, step)
        self._each(lambda tracker: tracker.log(dict(metrics), step=step))

    def finish(self, *, stopped: bool = False) -> None:
        """End them. stopped: the job was, and goes on one day; then there is little time."""
        if self._recorder is not None:
            self._recorder.finish("KILLED" if stopped else "FINISHED", seconds=5 if stopped else 30)
        self._each(lambda tracker: tracker.finish())
        self._trackers = {}

    def _each(self, action: Callable[[Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception as error:  # noqa: BLE001 - a service of others may fail in any way, and must not end a job
                log.warning("tracker %s failed and is left out from now on: %s: %s", name, type(error).__name__, error)
                del self._trackers[name]


def _start(name: str, run_name: str, folder: Path, config: Mapping[str, Any]) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    setting = f"setting trackers: {name!r}"
    if name not in LOGGER_TYPE_TO_CLASS:
        known = sorted(LOGGER_TYPE_TO_CLASS)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}"
        raise ConfigError(f"{setting} is no tracker", fix=hint)
    if name not in {str(found) for found in get_available_trackers()}:
        raise ConfigError(
            f"{setting} needs the package {name}, which is not installed",
            fix=f"add {name} to the program's requirements.txt, or leave the tracker out",
        )
    kind = LOGGER_TYPE_TO_CLASS[name]
    try:
        _let_accelerate_log()
        tracker = kind(run_name, str(folder)) if kind.requires_logging_directory else kind(run_name)
        # This is rank 0 already; asked to find out by itself, accelerate would look for a process group of its own.
        tracker.main_process_only = False
        tracker.start()
        tracker.store_init_configuration(dict(config))
    except Exception as error:
        raise ConfigError(
            f"{setting} does not start",
            why=f"{type(error).__name__}: {error}",
            fix=f"give what {name} needs, such as its address or key, or leave the tracker out",
        ) from error
    return tracker


def _let_accelerate_log() -> None:
    """accelerate's log lines fail before its PartialState exists. That one sets the number of threads where
    OMP_NUM_THREADS is not set, which would change the arithmetic of this rank alone: so it is set back."""
    from accelerate.state import PartialState

    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PartialState()
    torch.set_num_threads(threads)
