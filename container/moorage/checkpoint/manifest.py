"""The manifest: what a checkpoint is, with the size and hash of every file. Writing it is the commit. No torch here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from moorage.checkpoint.durable import FileFacts, digest
from moorage.checkpoint.layout import MANIFEST, METADATA, is_data_name, step_name
from moorage.checkpoint.source import Source, read_bytes
from moorage.errors import describe

T = TypeVar("T")

SCHEMA = 1
LARGEST = 64 << 20
"""Bytes of a manifest that are read at most; one of 4,096 ranks has about 1 MB."""

_CHECKSUM = re.compile(rb'"checksum": "([0-9a-f]{32})"')
_HASH = re.compile(r"[0-9a-f]{32}")
_NO_CHECKSUM = b'"checksum": "' + b"0" * 32 + b'"'
_LARGEST_FILE = 1 << 50

JSON = Any
"""What json.dumps takes without NaN: see `jsonable` for everything else."""


class ManifestError(ValueError):
    """A manifest that cannot be used; the message is the reason, without the file's name."""


@dataclass(frozen=True, kw_only=True)
class SaveInfo:
    """What the training says of the moment of a checkpoint."""

    step: int
    """Optimizer steps done."""
    epoch: int = 0
    """The epoch this falls into, from 0."""
    samples: int = 0
    """Samples of that epoch consumed, over all ranks."""
    strategy: str = ""
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    batch: Mapping[str, int] = field(default_factory=dict)
    """Facts of the batch that a resume compares, such as {"size": 64, "accumulation": 2}."""


@dataclass(frozen=True, kw_only=True)
class Entry(FileFacts):
    """One file. host: who wrote it, and has it even without a shared disk."""

    host: str


@dataclass(frozen=True, kw_only=True)
class Manifest(SaveInfo):
    """One checkpoint, as in its manifest.json."""

    world_size: int
    hosts: tuple[str, ...]
    """By rank: the host of each."""
    attempt: int = 0
    created: float = 0.0
    """Seconds since 1970, by the clock of the first host; nothing is ordered by it."""
    versions: Mapping[str, str] = field(default_factory=dict)
    objects: Mapping[str, JSON] = field(default_factory=dict)
    """What is not tensors, the same for all ranks."""
    per_rank: tuple[JSON, ...] = ()
    """What each rank gave for itself, by rank; empty when nothing was given."""
    files: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return step_name(self.step)

    @property
    def size(self) -> int:
        """Bytes of all files, the manifest itself not counted."""
        return sum(entry.size for entry in self.files.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: entry.size for name, entry in self.files.items()}

    def to_bytes(self) -> bytes:
        """Raises ValueError or TypeError when `objects` or `per_rank` hold what JSON has no form for."""
        content = {"schema": SCHEMA, "checksum": "0" * 32}
        content |= {part.name: getattr(self, part.name) for part in fields(self)}
        content["metrics"] = {name: _from_float(value) for name, value in self.metrics.items()}
        content["files"] = {name: vars(entry) for name, entry in self.files.items()}
        text = (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
        return text.replace(_NO_CHECKSUM, b'"checksum": "%s"' % digest(text).encode(), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises ManifestError for anything but the exact bytes that were written."""
        found = _CHECKSUM.search(data)
        if found is None:
            raise ManifestError("the manifest has no checksum")
        blank = data[: found.start()] + _NO_CHECKSUM + data[found.end() :]
        if digest(blank).encode() != found[1]:
            raise ManifestError("the manifest's content has changed (its checksum differs)")
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"the manifest is not JSON: {error}") from None
        return cls._from_content(content)

    @classmethod
    def _from_content(cls, content: Any) -> Manifest:
        # A checksum proves that nothing broke on the way, not who wrote it: every field is checked all the same.
        if not isinstance(content, dict):
            raise ManifestError("the manifest is not an object")
        if content.get("schema") != SCHEMA:
            raise ManifestError(f"the manifest has schema {content.get('schema')!r}, this version reads {SCHEMA}")
        read = _Reader(content)
        world_size = read.whole("world_size", least=1)
        manifest = cls(
            step=read.whole("step"),
            epoch=read.whole("epoch"),
            samples=read.whole("samples"),
            strategy=read.of("strategy", str),
            seed=read.whole("seed"),
            metrics={str(name): _to_float(value) for name, value in read.of("metrics", dict).items()},
            batch=read.of("batch", dict),
            world_size=world_size,
            hosts=tuple(str(host) for host in read.of("hosts", list)),
            attempt=read.whole("attempt"),
            created=_to_float(content.get("created")),
            versions=read.of("versions", dict),
            objects=read.of("objects", dict),
            per_rank=tuple(read.of("per_rank", list)),
            files={name: _entry(name, value) for name, value in read.of("files", dict).items()},
        )
        if len(manifest.hosts) != world_size or len(manifest.per_rank) not in (0, world_size):
            raise ManifestError(f"hosts or per_rank are not those of {world_size} ranks")
        if METADATA not in manifest.files:
            raise ManifestError(f"files has no {METADATA}")
        return manifest


def read_manifest(checkpoint: Source) -> tuple[Manifest, bytes]:
    """The manifest of a checkpoint, and its bytes. Raises ManifestError with the reason, FileNotFoundError."""
    try:
        data = read_bytes(checkpoint, MANIFEST, limit=LARGEST)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ManifestError(f"the manifest cannot be read: {describe(error)}") from None
    manifest = Manifest.from_bytes(data)
    if manifest.name != checkpoint.name:
        raise ManifestError(f"the manifest is that of {manifest.name}")
    return manifest, data


class _Reader:
    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def of(self, key: str, kind: type[T]) -> T:
        value = self._content.get(key)
        if not isinstance(value, kind):
            raise ManifestError(f"{key} must be a {kind.__name__}, not {value!r:.80}")
        return value

    def whole(self, key: str, least: int = 0) -> int:
        value = self._content.get(key)
        if type(value) is not int or not least <= value < 1 << 63:
            raise ManifestError(f"{key} must be a whole number of at least {least}, not {value!r:.80}")
        return value


def _entry(name: str, value: Any) -> Entry:
    if not is_data_name(name):
        raise ManifestError(f"{name!r:.80} is not the name of a checkpoint file")
    if not isinstance(value, dict):
        raise ManifestError(f"files[{name!r}] must be an object")
    size, xxh3_128, host = value.get("size"), value.get("xxh3_128"), value.get("host")
    if type(size) is not int or not 0 <= size <= _LARGEST_FILE:
        raise ManifestError(f"files[{name!r}]: size {size!r:.80}")
    if not isinstance(xxh3_128, str) or not _HASH.fullmatch(xxh3_128):
        raise ManifestError(f"files[{name!r}]: xxh3_128 {xxh3_128!r:.80}")
    return Entry(size=size, xxh3_128=xxh3_128, host=str(host))


def _from_float(value: float) -> float | str:
    # A loss can be NaN, and JSON has no word for it.
    value = float(value)
    return value if math.isfinite(value) else repr(value)


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ManifestError(f"{value!r:.80} is not a number") from None
