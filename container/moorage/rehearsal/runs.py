"""What a run is known by while it lives, and what is left of it when it died: its number, its lock and its folders.

A run holds a lock on its entry in the register as long as its process lives; the kernel lets go of it, however that
ends. What carries the number of a run whose lock is free can be removed, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.errors import ConfigError

LOCK_LABEL, MACHINE_LABEL = "moorage.rehearsal.lock", "moorage.rehearsal.machine"
MARKER = ".moorage-rehearsal"
"""In a run's folder: its number."""
HOSTS = "hosts"
"""In a run's folder, while it lives: the folders of its hosts."""


def machine() -> str:
    """Where a lock's path means something."""
    return socket.gethostname()


def register(env: Mapping[str, str]) -> Path:
    """The folder with an entry for each run of this user: XDG_STATE_HOME, else ~/.local/state."""
    home = env.get("XDG_STATE_HOME") or (f"{env['HOME']}/.local/state" if env.get("HOME") else tempfile.gettempdir())
    return Path(home) / "moorage" / "rehearsals"


@dataclass(kw_only=True)
class Entry:
    """One run in the register. processes: numbers of those that are its hosts, each with its start in the kernel's
    clock, since numbers are used again."""

    path: Path
    run: str
    folder: Path
    processes: dict[int, str]
    _descriptor: int | None = None

    @classmethod
    def create(cls, env: Mapping[str, str], folder: Path) -> Entry:
        """Lock it. Raises ConfigError."""
        run = uuid.uuid4().hex[:12]
        path = register(env) / f"{run}.json"
        fresh = path.with_suffix(".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            fresh.rename(path)  # whoever sees it finds it locked
        except OSError as error:
            raise ConfigError(
                f"cannot note the run in {path.parent}", why=str(error.strerror), fix="set XDG_STATE_HOME to a folder"
            ) from None
        entry = cls(path=path, run=run, folder=folder, processes={}, _descriptor=descriptor)
        entry._write()
        return entry

    @property
    def labels(self) -> dict[str, str]:
        return {LOCK_LABEL: str(self.path), MACHINE_LABEL: machine()}

    def begun(self, process: int) -> None:
        """A host is this process."""
        self.processes[process] = started(process)
        self._write()

    def _write(self) -> None:
        assert self._descriptor is not None
        content = {"run": self.run, "folder": str(self.folder), "processes": self.processes}
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(content).encode(), 0)

    def close(self) -> None:
        """Nothing is left of the run."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def entries(env: Mapping[str, str]) -> Iterator[Path]:
    yield from sorted(register(env).glob("*.json"))


@contextlib.contextmanager
def dead(path: Path) -> Iterator[Entry | None]:
    """The entry, locked for the one who cleans up behind its run; None where the run lives."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        content = _content(os.pread(descriptor, 2**20, 0))
        yield Entry(
            path=path,
            run=path.stem,
            folder=Path(content.get("folder", "")),
            processes={int(number): str(start) for number, start in content.get("processes", {}).items()},
        )
    finally:
        os.close(descriptor)


def lives(lock: str) -> bool:
    """Whether the run that holds this lock does, on this machine."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # somebody else's: nothing is known of it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def started(process: int) -> str:
    """When a process was started, in the kernel's ticks; "" where there is none."""
    try:
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, IndexError):
        return ""


def make_folder(folder: Path, run: str) -> None:
    """A run's folder, with its marker. Raises ConfigError where there is something in it already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = next(folder.iterdir(), None)
        if there is None:
            (folder / MARKER).write_text(run + "\n", encoding="ascii")
            (folder / HOSTS).mkdir()
    except OSError as error:
        raise ConfigError(
            f"the run's folder {folder} cannot be made", why=str(error.strerror), fix="name another"
        ) from None
    if there is not None:
        raise ConfigError(
            f"the run's folder {folder} is not empty",
            why=f"there is {there.name} in it, maybe of an earlier run, or of one that runs now",
            fix="name another folder or job, or remove it",
        )


def remove_tree(folder: Path) -> None:
    """Raises OSError for what cannot be removed."""
    if folder.exists():
        shutil.rmtree(folder)


def _content(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}  # it died as it wrote it
    return value if isinstance(value, dict) else {}
