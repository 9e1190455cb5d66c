"""The program's folder as one archive under the hash of what is in it: the same code is uploaded once."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage.errors import ConfigError

MOST_BYTES = 200 * 2**20
_IGNORED = frozenset({"__pycache__", "node_modules", "runs"})


@dataclass(frozen=True, kw_only=True)
class Packed:
    """path: the tar.gz. digest: 32 hexadecimal digits, of names, modes and contents. size: bytes, unpacked."""

    path: Path
    digest: str
    files: int
    size: int


def pack(folder: Path, target: Path, *, leave_out: Sequence[Path] = ()) -> Packed:
    """Everything git does not ignore; outside of a checkout, all but hidden and made files. Equal content is an equal
    archive. leave_out: files and folders, as those of the data. Raises ConfigError.
    """
    paths = sorted(_paths(folder, [path.resolve() for path in leave_out]))
    if not paths:
        raise ConfigError(
            f"there is no code in {folder.resolve()}", why="git ignores all of it, or it is empty",
            fix="name another folder by --source",
        )  # fmt: skip
    size = sum(path.stat().st_size for path in paths)
    if size > MOST_BYTES:
        largest = max(paths, key=lambda path: path.stat().st_size).relative_to(folder)
        raise ConfigError(
            f"the code in {folder.resolve()} is {size / 2**20:.0f} MB",
            why=f"more than {MOST_BYTES // 2**20} MB are data; the largest file is {largest}",
            fix="have git ignore it, or give it to the job as a channel",
        )
    digest = hashlib.sha256()
    with (
        target.open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in paths:
            _add(tar, digest, path, path.relative_to(folder).as_posix())
    return Packed(path=target, digest=digest.hexdigest()[:32], files=len(paths), size=size)


def _add(tar: tarfile.TarFile, digest: hashlib._Hash, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    content = path.read_bytes()
    info.size, info.mode = len(content), 0o755 if os.access(path, os.X_OK) else 0o644
    for part in (name.encode(), oct(info.mode).encode(), content):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    with path.open("rb") as opened:
        tar.addfile(info, opened)


def _paths(folder: Path, left_out: Sequence[Path]) -> Iterator[Path]:
    """Regular files, and links to such inside the folder."""
    root = folder.resolve()
    for path in _by_git(folder) or _by_walk(folder):
        real = path.resolve()
        if not path.is_file() or not real.is_relative_to(root):
            continue
        if not any(real.is_relative_to(out) for out in left_out):
            yield path


def _by_git(folder: Path) -> list[Path]:
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return [folder / os.fsdecode(name) for name in done.stdout.split(b"\0") if name] if done.returncode == 0 else []


def _by_walk(folder: Path) -> Iterator[Path]:
    for root, names, files in os.walk(folder):
        here = Path(root)
        names[:] = [
            name for name in names
            if not name.startswith(".") and name not in _IGNORED and not (here / name / "pyvenv.cfg").exists()
        ]  # fmt: skip
        yield from (here / name for name in files if not name.startswith(".") and not name.endswith(".pyc"))
