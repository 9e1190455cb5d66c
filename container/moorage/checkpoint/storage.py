"""Where a job keeps its checkpoints: what is asked of it, and the folder on a disk. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moorage.checkpoint import layout
from moorage.checkpoint.durable import FileFacts, sync_folder, writing
from moorage.checkpoint.layout import MANIFEST, UPLOADED, UPLOADING, step_name
from moorage.checkpoint.source import Folders, Place


class Writer(Protocol):
    """A file on its way."""

    @property
    def position(self) -> int:
        """Bytes written so far."""

    def write(self, data: bytes | bytearray | memoryview) -> int: ...

    def finish(self) -> FileFacts:
        """Wait until everything is where it lasts."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A file as a listing shows it. size: bytes. changed: seconds since 1970."""

    size: int
    changed: float


class Storage(Place, Protocol):
    """The checkpoints of a job, to be written, kept and removed. Raises OSError, or MoorageError with the remedy.

    A file is there whole or not at all. A step is committed once it has its manifest, which is written last and removed
    first.
    """

    @property
    def path(self) -> Path | None:
        """The folder; hosts may share it or each have their own. None where all see the same anyway."""

    def prepare(self) -> None:
        """See that it can be written to, and remove what earlier starts left half done. By one rank of those who share
        it, before all else.
        """

    def writing(self, step: int, name: str) -> AbstractContextManager[Writer]:
        """Write a file; it has its name and lasts when the `with` ends, and is not there when that fails."""

    def settle(self) -> None:
        """Return when what was written lasts through a power cut."""

    def names(self, step: int) -> Collection[str]:
        """Those of all files of a step. Raises FileNotFoundError where there is no such step."""

    def listing(self, step: int) -> Mapping[str, Seen]:
        """All files of a step, by name. Raises FileNotFoundError where there is no such step."""

    def discard(self, step: int, names: Collection[str]) -> None:
        """Remove files of a save that failed, and the step with the last of them."""

    def remove(self, step: int) -> bool:
        """Remove a step. False when that has to wait: an agent is uploading from it."""

    def move_aside(self, step: int) -> str:
        """Keep a damaged checkpoint under another name, which is returned, so that its step can be saved again.

        Empty where that has to wait; it is no longer committed all the same.
        """

    def aside(self) -> Mapping[int, Collection[str]]:
        """The names of those moved aside, by step."""

    def remove_aside(self, name: str) -> bool:
        """As `remove`."""


@dataclass(frozen=True)
class Disk(Folders):
    """A folder of this host, which others may share."""

    def prepare(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def writing(self, step: int, name: str) -> Iterator[Writer]:
        path = self.path / step_name(step) / name
        path.parent.mkdir(exist_ok=True)
        with writing(path) as writer:
            yield writer
        sync_folder(path.parent)

    def settle(self) -> None:
        sync_folder(self.path)

    def names(self, step: int) -> Collection[str]:
        return [entry.name for entry in (self.path / step_name(step)).iterdir()]

    def listing(self, step: int) -> Mapping[str, Seen]:
        found = {}
        for entry in (self.path / step_name(step)).iterdir():
            try:
                facts = entry.lstat()
            except FileNotFoundError:
                continue  # an agent replaces its marks while we look
            found[entry.name] = Seen(size=facts.st_size, changed=facts.st_mtime)
        return found

    def discard(self, step: int, names: Collection[str]) -> None:
        folder = self.path / step_name(step)
        for name in names:
            begun, ended = ((folder / (name + mark)).exists() for mark in (UPLOADING, UPLOADED))
            if name == MANIFEST or not begun or ended:
                (folder / name).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def remove(self, step: int) -> bool:
        return layout.remove(self.path / step_name(step))

    def move_aside(self, step: int) -> str:
        aside = layout.move_aside(self.path, step)
        return aside.name if aside else ""

    def aside(self) -> Mapping[int, Collection[str]]:
        return {step: [folder.name for folder in folders] for step, folders in layout.damaged(self.path).items()}

    def remove_aside(self, name: str) -> bool:
        return layout.remove(self.path / name)


def write_bytes(storage: Storage, step: int, name: str, data: bytes) -> None:
    """A file from memory."""
    with storage.writing(step, name) as writer:
        writer.write(data)
        writer.finish()


def committed(storage: Storage) -> dict[int, Collection[str]]:
    """The steps that have a manifest, oldest first, with the names of their files."""
    found = {step: storage.names(step) for step in storage.steps()}
    return {step: names for step, names in found.items() if MANIFEST in names}
