"""The checkpoints of a job in S3, laid out as on a disk: `PREFIX/step-00000120/manifest.json`. No torch here.

There is no moving in S3, and no folder: a name is a folder as long as there is something under it.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from moorage.checkpoint.layout import IGNORE, MANIFEST, damaged_name, damaged_step, step_name, step_of
from moorage.checkpoint.s3.bucket import Bucket
from moorage.checkpoint.s3.download import Download, read_bytes
from moorage.checkpoint.s3.upload import Upload, sweep, uploading
from moorage.checkpoint.storage import Seen

_PROBE = "probe" + IGNORE


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint."""

    bucket: Bucket
    name: str

    @contextmanager
    def open(self, name: str) -> Iterator[Download]:
        yield Download(self.bucket, f"{self.name}/{name}")

    def __str__(self) -> str:
        return f"{self.bucket.address}/{self.name}"


class S3:
    """The checkpoints under the address of a bucket. Every rank has its own, and all see the same."""

    path = None

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def __str__(self) -> str:
        return str(self._bucket.address)

    def prepare(self) -> None:
        """Use every permission that a save will need, so that one that is missing ends the job at its start."""
        self._bucket.folders()
        self._bucket.put(_PROBE, b"probe")
        read_bytes(self._bucket, _PROBE, limit=5)
        self._bucket.delete([_PROBE])
        # Of a start before this one that was killed: nobody goes on with them, and they are paid for.
        sweep(self._bucket, lambda key, upload: step_of(key.partition("/")[0]) is not None)

    def steps(self) -> list[int]:
        names = self._bucket.folders()
        aside = self._aside(names)
        found = (step for step in map(step_of, names) if step is not None)
        return sorted(step for step in found if step not in aside or self._is_committed(step))

    def _is_committed(self, step: int) -> bool:
        return self._bucket.exists(f"{step_name(step)}/{MANIFEST}")

    def checkpoint(self, step: int) -> Checkpoint:
        return Checkpoint(self._bucket, step_name(step))

    def writing(self, step: int, name: str) -> AbstractContextManager[Upload]:
        return uploading(self._bucket, f"{step_name(step)}/{name}")

    def settle(self) -> None:
        """What S3 has taken lasts."""

    def names(self, step: int) -> Collection[str]:
        return self.listing(step)

    def listing(self, step: int) -> Mapping[str, Seen]:
        found = self._bucket.listing(step_name(step))
        if not found:
            raise FileNotFoundError(errno.ENOENT, "no such checkpoint", step_name(step))
        return found

    def discard(self, step: int, names: Collection[str]) -> None:
        self._bucket.delete([f"{step_name(step)}/{name}" for name in names])

    def remove(self, step: int) -> bool:
        self._remove(step_name(step))
        return True

    def _remove(self, name: str) -> None:
        keys = [f"{name}/{key}" for key in self._bucket.listing(name)]
        manifest = f"{name}/{MANIFEST}"
        if manifest in keys:
            # Without its manifest it is no checkpoint any more: a crash below leaves nothing that looks whole.
            self._bucket.delete([manifest])
        self._bucket.delete([key for key in keys if key != manifest])

    def move_aside(self, step: int) -> str:
        """Only the manifest moves: the files stay where they are, with nothing that names them."""
        name = damaged_name(step, self._bucket.folders())
        manifest = f"{step_name(step)}/{MANIFEST}"
        self._bucket.copy(manifest, f"{name}/{MANIFEST}")
        self._bucket.delete([manifest])
        return name

    def aside(self) -> Mapping[int, Collection[str]]:
        return self._aside(self._bucket.folders())

    @staticmethod
    def _aside(names: Collection[str]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name in names:
            if (step := damaged_step(name)) is not None:
                found.setdefault(step, []).append(name)
        return found

    def remove_aside(self, name: str) -> bool:
        self._remove(name)
        return True
