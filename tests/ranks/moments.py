"""Exact moments in the life of a rank, for the chaos program: there it lingers until it was asked to stop, or dies.

What a test wants lies in files, since a restarted rank is to know it too. `<job>/<host>/moments/<where>-<rank>` is
there when that rank is to linger, and `asked-<rank>` once it has heard SIGTERM. `<job>/kills.json` lists the deaths,
one for each attempt; the one that dies writes a line of `<job>/killed.jsonl` just before.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

HOST = Path(os.environ.get("SAGEMAKER_BASE_DIR", "."))
RANK = int(os.environ.get("RANK", "0"))
LONGEST = 60.0
"""Seconds that a rank lingers at most."""


def marks(host: Path) -> Path:
    return host / "moments"


def linger(where: str) -> None:
    """Where a test wants it, wait until this rank has heard that it is to stop. In any thread, and in data workers."""
    asked = marks(HOST) / f"asked-{RANK}"
    if not (marks(HOST) / f"{where}-{RANK}").exists() or asked.exists():
        return
    print(f"lingers: {where}", flush=True)
    end = time.monotonic() + LONGEST
    while not asked.exists() and time.monotonic() < end:
        time.sleep(0.002)


def install() -> None:
    """Once this process hears SIGTERM as a rank does: note that it has, and see to the moments inside of a save and of
    a resume, and to the deaths."""
    theirs = signal.getsignal(signal.SIGTERM)
    assert callable(theirs)

    def hear(number: int, frame: FrameType | None) -> None:
        if marks(HOST).is_dir():
            (marks(HOST) / f"asked-{RANK}").touch()
        theirs(number, frame)

    signal.signal(signal.SIGTERM, hear)
    _before(os, "fsync", lambda descriptor: linger("save") if _name_of(descriptor).endswith(SHARD) else None)
    _before(os, "open", lambda path, *_: linger("resume") if str(path).endswith(".distcp") else None)
    _await_death()


SHARD = ".distcp.sagemaker-ignore"
MANIFEST = "manifest.json.sagemaker-ignore"
"""As they are called until they are whole."""


def _before(module: ModuleType, name: str, action: Callable[..., None]) -> None:
    real = getattr(module, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        action(*args)
        return real(*args, **options)

    setattr(module, name, wrapped)


def _name_of(file: Any) -> str:
    """The path of what a function of os was given: a path or an open file."""
    return str(Path(f"/proc/self/fd/{file}").readlink()) if isinstance(file, int) else str(file)


def _await_death() -> None:
    """Die in the second save of this attempt, so that each has got on, where it is this rank's turn."""
    kills, killed = HOST.parent / "kills.json", HOST.parent / "killed.jsonl"
    if not kills.exists():
        return
    done = len(killed.read_bytes().splitlines()) if killed.exists() else 0
    wanted = json.loads(kills.read_text(encoding="utf-8"))[done:]
    if wanted and wanted[0]["rank"] == RANK:
        Death(killed=killed, **wanted[0]).await_it()


class Death:
    """call: a function of os, or ctypes.memmove, which copies weights. file: the end of the name of what it is called
    with, empty for any. when: "before" the call, "half" way through it (of a write), or "after" it. nth: of such calls.
    behind: only once another host has committed the same checkpoint. host: with its supervisor, and so with all ranks
    of the host.
    """

    def __init__(
        self, *, killed: Path, rank: int, call: str, file: str, when: str, nth: int, behind: bool, host: bool
    ) -> None:
        self.killed, self.call, self.file, self.when, self.nth = killed, call, file, when, nth
        self.behind, self.host = behind, host
        self.committed = -1
        """The step of the newest checkpoint that this process has given its manifest."""

    def await_it(self) -> None:
        module: ModuleType = ctypes if self.call == "memmove" else os
        for name in {self.call, "rename"}:
            self._wrap(os if name == "rename" else module, name)

    def _wrap(self, module: ModuleType, name: str) -> None:
        real = getattr(module, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            path = "" if name == "memmove" else _name_of(args[0])
            mine = name == self.call and path.endswith(self.file) and self.committed >= 0
            self.nth -= mine
            now = mine and self.nth == 0
            if now and self.when != "after":
                if self.when == "half":
                    real(args[0], _half(args[1]))
                self._die(path)
            found = real(*args, **options)
            if path.endswith(MANIFEST):
                self.committed = int(Path(path).parent.name.removeprefix("step-"))
            if now:
                self._die(path)
            return found

        setattr(module, name, wrapped)

    def _die(self, path: str) -> None:
        others: list[str] = []
        end = time.monotonic() + LONGEST
        while self.behind and not others and time.monotonic() < end:
            step = Path(path).parent.name
            others = [found.parts[-4] for found in HOST.parent.glob(f"*/checkpoints/{step}/manifest.json")]
        line = {"rank": RANK, "committed": self.committed, "others": others}
        with self.killed.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.host:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def _half(data: Any) -> memoryview:
    """Whole blocks where it is long: a direct write takes nothing else."""
    half = len(data) // 2
    return memoryview(data)[: half // 4096 * 4096 or half]
