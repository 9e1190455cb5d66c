"""Input data, as each input mode brings it to a host.

| mode | /opt/ml/input/data/<channel> |
|---|---|
| File | a copy of the host's own |
| FastFile | the folder itself, mounted read-only |
| Pipe | FIFOs <channel>_0, <channel>_1, ...: in each all files, one behind the other; the next comes when one is read |

Sharded, a host is given every n-th of the sorted keys, which may be none.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from moorage.errors import ConfigError, EngineError
from moorage.rehearsal.job import Channel

CHUNK = 8 * 2**20
_SPARE = 256 * 2**20
"""Bytes of disk that copies must leave free."""

logger = logging.getLogger("moorage")
Told = Callable[[int, int], None]
"""Of bytes: so far, of how many."""


def keys(channel: Channel, index: int = 0, hosts: int = 1) -> dict[str, Path]:
    """The objects that host `index` of `hosts` is given: key below the prefix -> file, sorted. Raises ConfigError."""
    found = {channel.path.name: channel.path} if channel.path.is_file() else _files(channel.path)
    names = sorted(found)
    return {name: found[name] for name in (names[index::hosts] if channel.sharded else names)}


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            path = Path(parent, name)
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path
    return found


def _unreadable(error: OSError) -> None:
    raise ConfigError(
        f"cannot read the data folder {error.filename}", why=str(error.strerror), fix="give it to yourself"
    )


def copy(files: Mapping[str, Path], folder: Path, told: Told = lambda done, total: None) -> None:
    """Into `folder`, which is made also where there is no file for it. Raises EngineError where it does not fit."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total, done = sum(sizes.values()), 0
    free = shutil.disk_usage(folder).free
    if total > free - _SPARE:
        raise EngineError(
            f"{total / 1e9:.1f} GB of data do not fit on the disk of {folder}",
            why=f"{free / 1e9:.1f} GB are free, and input mode File copies them for each host",
            fix="use input mode FastFile, which mounts the folder, or put the run's folder on another disk",
        )
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            for count in _copied(path, target):
                done += count
                told(done, total)
        except OSError as error:
            raise EngineError(f"cannot copy {path} to {target}", why=str(error.strerror), fix="see the disk") from None


def _copied(source: Path, target: Path) -> Iterator[int]:
    """Bytes of each piece. Where the file system can share the blocks, it does."""
    with source.open("rb", buffering=0) as reading, target.open("wb", buffering=0) as writing:
        done = 0
        try:
            while count := os.copy_file_range(reading.fileno(), writing.fileno(), CHUNK):
                done += count
                yield count
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        # Also after an end that was none: of files in /proc and on some network mounts the call copies nothing.
        reading.seek(done)
        writing.seek(done)
        while data := reading.read(CHUNK):
            writing.write(data)
            yield len(data)


def link(files: Mapping[str, Path], folder: Path) -> None:
    """The same files under `folder`, to be mounted read-only: linked, or copied where it is another file system."""
    folder.mkdir(parents=True, exist_ok=True)
    apart = {}
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(path.resolve())
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
            apart[name] = path
    copy(apart, folder)


class Pipe:
    """Writes the files of a channel into FIFO after FIFO, as long as somebody reads them."""

    def __init__(self, files: Mapping[str, Path], folder: Path, channel: str) -> None:
        self._files, self._folder, self._channel = tuple(files.values()), folder, channel
        self._ended = threading.Event()
        self.epochs = 0
        """Read so far."""
        folder.mkdir(parents=True, exist_ok=True)
        self._fifo = self._make(0)
        self._thread = threading.Thread(target=self._feed, name=f"pipe-{channel}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _make(self, epoch: int) -> Path:
        fifo = self._folder / f"{self._channel}_{epoch}"
        os.mkfifo(fifo)
        fifo.chmod(0o666)  # whoever the container runs as
        return fifo

    def _feed(self) -> None:
        while (descriptor := self._opened()) is not None:
            try:
                for path in self._files:
                    self._write(descriptor, path)
            except BrokenPipeError:
                logger.info("channel %s: epoch %d was not read to its end", self._channel, self.epochs)
            # Before the end can be seen, so that whoever sees it finds the next.
            self.epochs += 1
            self._fifo = self._make(self.epochs)
            os.close(descriptor)

    def _opened(self) -> int | None:
        """When a reader is there; a blocking open could not be ended."""
        while not self._ended.is_set():
            try:
                return os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
            self._ended.wait(0.02)
        return None

    def _write(self, descriptor: int, path: Path) -> None:
        with path.open("rb", buffering=0) as file:
            while data := memoryview(file.read(2**16)):
                while data and not self._ended.is_set():
                    try:
                        data = data[os.write(descriptor, data) :]
                    except BlockingIOError:
                        select.select([], [descriptor], [], 0.1)
                if self._ended.is_set():
                    return
