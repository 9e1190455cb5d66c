"""The platform's checkpoint agent: one for each host, between the host's folder and the one prefix of the job.

| rule | |
|---|---|
| start | everything below the prefix is brought to EVERY host |
| a file appears or changes | `X.sagemaker-uploading` is put beside it, it goes up, `X.sagemaker-uploaded` beside it |
| `X.sagemaker-ignore` | is never uploaded; nor are the marks themselves |
| a file goes | it is deleted below the prefix too |
| order, latency, a last flush | nothing is promised: the order is drawn, and an upload can be late or broken off |

From AWS's own containers (the marks) and its documentation; what is not known of the platform's agent is what nothing
here promises. A restored file gets no mark.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moorage.errors import MoorageError
from moorage.rehearsal.prefix import Cut, Prefix

IGNORE, UPLOADING, UPLOADED = ".sagemaker-ignore", ".sagemaker-uploading", ".sagemaker-uploaded"
_ASIDE = (IGNORE, UPLOADING, UPLOADED)
_LOOK = 0.05
"""Seconds between two looks at the folder; and from the mark to the upload: who looked for the mark a moment before it
was there may delete still."""

logger = logging.getLogger("moorage")

Told = Callable[[str, Literal["uploaded", "deleted", "restored", "cut"], str, int, float], None]
"""host, action, file, bytes, seconds."""
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """delay: seconds before a file that appeared goes up. bandwidth: bytes per second; 0 is without limit."""

    delay: float = 0.0
    bandwidth: float = 0.0


class Agent:
    """Of one host in one attempt: `restore`, `start`, and then one of `finish` and `cut`."""

    def __init__(self, host: str, folder: Path, prefix: Prefix, *, pace: Pace, seed: str, told: Told) -> None:
        self.host, self._folder, self._prefix, self._pace, self._told = host, folder, prefix, pace, told
        self._chance = random.Random(seed)
        self._known: dict[str, _Stamp] = {}
        """Files as they were when they were restored or uploaded."""
        self._seen: dict[str, tuple[_Stamp, float]] = {}
        self._paused = threading.Event()
        self._ended = threading.Event()
        self._gone = threading.Event()
        self._budget: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"agent-{host}", daemon=True)
        self._marks_fail = False
        self.error: Exception | None = None
        """What ended it before its time."""
        self.uploaded = self.left = 0
        """Files that came up, and those that did not before the end."""

    def restore(self) -> None:
        """Bring everything to the host; before its container is started."""
        began = time.monotonic()
        for key, size in sorted(self._prefix.keys().items()):
            target = self._folder / key
            target.parent.mkdir(parents=True, exist_ok=True)
            self._prefix.get(key, target)
            self._known[key] = _stamp(target)
            self._told(self.host, "restored", key, size, time.monotonic() - began)

    def start(self) -> None:
        self._thread.start()

    def pause(self) -> None:
        """Upload nothing from now on, as an agent that falls behind; what is begun is brought to its end."""
        self._paused.set()

    def finish(self, timeout: float) -> None:
        """The container is gone: bring up what is left, for `timeout` seconds at most. Raises what `error` holds."""
        self._end()
        self._drain(time.monotonic() + timeout)

    def cut(self, share: float) -> None:
        """The container is gone: of what is left to upload, in bytes, only this share comes up, from 0 to 1."""
        self._end()
        self._budget = int(share * sum(stamp[1] for stamp in self._waiting(0.0).values()))
        self._drain(float("inf"))

    def close(self) -> None:
        """Gone at once, as its host: what is going up is broken off."""
        self._budget = 0
        self._gone.set()
        self._end()

    def abandon(self) -> None:
        """As `close`, without waiting for it: for whoever does not wait for `finish` any longer."""
        self._budget = 0
        self._gone.set()

    def _end(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._delete()
                waiting = self._waiting(self._pace.delay)
                if waiting and not self._paused.is_set():
                    self._upload(self._next(waiting))
                else:
                    self._ended.wait(_LOOK)
        except Cut:
            return
        except (OSError, MoorageError) as error:
            self.error = error

    def _drain(self, until: float) -> None:
        if self._gone.is_set():
            return
        if self.error is not None:
            raise self.error
        self._delete()
        waiting = self._waiting(0.0)
        with contextlib.suppress(Cut):
            while waiting and time.monotonic() < until:
                self._upload(self._next(waiting))
                waiting = self._waiting(0.0)
        self.left = len(self._waiting(0.0))

    def _next(self, waiting: dict[str, _Stamp]) -> str:
        """Mostly the oldest: nothing says in which order files go up."""
        names = sorted(waiting, key=lambda name: (waiting[name], name))
        return names[0] if self._chance.random() < 0.7 else self._chance.choice(names)

    def _upload(self, file: str) -> None:
        source, began = self._folder / file, time.monotonic()
        if not self._mark(source, UPLOADING):
            return
        time.sleep(_LOOK)
        try:
            stamp = _stamp(source)
            self._prefix.put(source, file, self._passed)
        except FileNotFoundError:
            # Deleted just as it was begun, or against the protocol, while it went up.
            source.with_name(source.name + UPLOADING).unlink(missing_ok=True)
            return
        except Cut:
            self._tell("cut", file, 0, began)
            raise
        self._known[file] = stamp
        self._mark(source, UPLOADED)
        self.uploaded += 1
        self._tell("uploaded", file, stamp[1], began)

    def _mark(self, source: Path, mark: str) -> bool:
        path = source.with_name(source.name + mark)
        try:
            path.unlink(missing_ok=True)
            path.touch()
        except FileNotFoundError:
            return False  # the folder is gone with the file
        except PermissionError as error:
            if not self._marks_fail:
                logger.warning("the checkpoint agent cannot put its mark %s: %s", path, error.strerror)
            self._marks_fail = True
        return True

    def _passed(self, count: int) -> None:
        if self._budget is not None:
            self._budget -= count
            if self._budget < 0:
                raise Cut
        if self._pace.bandwidth:
            self._gone.wait(count / self._pace.bandwidth)
        if self._gone.is_set():
            raise Cut

    def _delete(self) -> None:
        for file in sorted(self._known.keys() - self._here().keys()):
            del self._known[file]
            began = time.monotonic()
            self._prefix.delete(file)
            self._tell("deleted", file, 0, began)

    def _waiting(self, delay: float) -> dict[str, _Stamp]:
        """Files that are not below the prefix as they are here, and have not been since `delay` seconds."""
        here, now = self._here(), time.monotonic()
        self._seen = {
            file: (stamp, self._seen[file][1] if self._seen.get(file, (None, 0))[0] == stamp else now)
            for file, stamp in here.items()
            if self._known.get(file) != stamp
        }
        return {file: stamp for file, (stamp, since) in self._seen.items() if now - since >= delay}

    def _here(self) -> dict[str, _Stamp]:
        found = {}
        for parent, _, names in os.walk(self._folder):
            for name in names:
                path = Path(parent, name)
                if name.endswith(_ASIDE):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    found[path.relative_to(self._folder).as_posix()] = _stamp(path)
        return found

    def _tell(self, action: Literal["uploaded", "deleted", "cut"], file: str, size: int, began: float) -> None:
        self._told(self.host, action, file, size, time.monotonic() - began)


def _stamp(path: Path) -> _Stamp:
    """Raises FileNotFoundError."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
