"""Sends what the spool holds, from a thread of its own: training never waits for a tracking server."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from moorage.contract.secrets import redact
from moorage.training.tracking.server import Server, Target
from moorage.training.tracking.spool import Spool

EVERY = 2.0
"""Seconds between two sendings, so that they are few and large."""

SOON = 0.5
"""The same at the end, when there is little time."""

LONGEST = 60.0
"""Seconds between two tries to reach a server that is away."""

log = logging.getLogger("moorage")


class Recorder:
    """The run of one job, from its main rank. `log` returns at once; what it was given is on disk by then.

    The first metric begins it. params and tags are asked for in the thread, since finding them out may take a while;
    files, the artifacts, at the end.
    """

    def __init__(
        self,
        target: Target,
        spool: Spool,
        *,
        name: str,
        params: Callable[[], Mapping[str, str]] = dict,
        tags: Callable[[], Mapping[str, str]] = dict,
        files: Callable[[], Sequence[Path]] = list,
    ) -> None:
        self._target, self._spool, self._name = target, spool, name
        self._params, self._tags, self._files = params, tags, files
        self._server: Server | None = None
        self._described: tuple[Mapping[str, str], Mapping[str, str]] | None = None
        self._away = False
        self._more_tags = dict[str, str]()
        self._ending, self._ended, self._status = threading.Event(), threading.Event(), ""
        # A daemon: a server that does not answer cannot keep the job from ending.
        self._thread = threading.Thread(target=self._work, name="moorage-tracking", daemon=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._spool.add(values, step)
        self._begin()

    def _begin(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def tag(self, tags: Mapping[str, str]) -> None:
        """Add to what is known of the run; before the first metric."""
        self._more_tags |= tags

    def finish(self, status: str, seconds: float) -> None:
        """Send the rest, for so many seconds at most; what is left then is sent when the job starts again.

        status: FINISHED, KILLED or FAILED, as MLflow has them.
        """
        self._status = status
        self._begin()
        self._ending.set()
        self._thread.join(seconds)
        if not self._ended.is_set():
            log.warning(
                "MLflow at %s has not got everything after %.0f s: the rest is kept in %s, and sent when the job "
                "starts again",
                self._target.shown, seconds, self._spool.folder,
            )  # fmt: skip
        self._spool.close()

    def _work(self) -> None:
        pause = EVERY
        while not self._ended.is_set():
            last = self._ending.is_set()
            pause = EVERY if self._send(last) else min(LONGEST, 2 * pause)
            if last:
                time.sleep(0 if self._ended.is_set() else SOON)
            else:
                # With jitter: a thousand jobs do not come back to a server at once.
                self._ending.wait(pause * random.uniform(0.7, 1.3))

    def _send(self, last: bool) -> bool:
        points = self._spool.take()
        try:
            server = self._open()
            server.send(points)
            points = []
            if last:
                server.keep(self._files() if self._status == "FINISHED" else [])
                server.end(self._status)
                self._ended.set()
        except Exception as error:  # noqa: BLE001 - a service of others may fail in any way, and must not end a job
            self._spool.give_back(points)
            self._missed(error)
            return False
        if self._away:
            self._away = False
            log.info("MLflow at %s answers again: what was kept is sent", self._target.shown)
        return True

    def _open(self) -> Server:
        if self._server is None:
            if self._described is None:
                self._described = self._params(), {**self._tags(), **self._more_tags}
                self._spool.describe(*self._described)
            server = Server.open(self._target, identity=self._spool.identity, name=self._name)
            known = server.describe(*self._described)
            for name, value in known.items():
                log.warning("MLflow keeps %s=%s, with which the run began: a parameter cannot change", name, value)
            self._server = server
            log.info("recording in MLflow at %s, run %s", self._target.shown, server.run_id)
        elif self._away:
            self._server.look()
        return self._server

    def _missed(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            log.warning(
                "MLflow at %s does not take what is tracked (%s): it is kept, and tried again; training goes on",
                self._target.shown, redact(f"{type(error).__name__}: {error}".splitlines()[0][:300]),
            )  # fmt: skip
