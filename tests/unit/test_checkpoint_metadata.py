"""`.metadata` and items from somebody who wants to run code here: refused, with nothing run."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from moorage.checkpoint.checkpointer import Checkpointer, SaveInfo
from moorage.checkpoint.durable import digest
from moorage.checkpoint.layout import MANIFEST, METADATA
from moorage.checkpoint.manifest import Entry, Manifest
from moorage.checkpoint.metadata import MetadataError, parse_metadata, read_metadata, tensor_facts
from moorage.checkpoint.source import Folder
from moorage.errors import CheckpointError

SIZES = {"a.distcp": 5000}


def metadata(**changes: Any) -> Metadata:
    given: dict[str, Any] = {
        "state_dict_metadata": {
            "w": TensorStorageMetadata(
                properties=TensorProperties(dtype=torch.float32),
                size=torch.Size([4, 2]),
                chunks=[ChunkStorageMetadata(offsets=torch.Size([0, 0]), sizes=torch.Size([4, 2]))],
            )
        },
        "planner_data": {"w": ("w",)},
        "storage_data": {MetadataIndex("w", [0, 0], 0): _StorageInfo("a.distcp", 0, 1600)},
        "storage_meta": StorageMeta(checkpoint_id=Path("x")),
        "version": "1.0.0",
    }
    return Metadata(**{**given, **changes})


def test_what_dcp_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        "f": torch.ones(3, 4),
        "b": torch.ones(2, dtype=torch.bfloat16),
        "s": torch.tensor(1),
        "e": torch.empty(0, 3),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dict(tensors), checkpoint_id=tmp_path, no_dist=True)
    found = read_metadata(Folder(tmp_path), {path.name: path.stat().st_size for path in tmp_path.iterdir()})
    assert {name: (facts.shape, facts.dtype) for name, facts in tensor_facts(found).items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
    }
    assert parse_metadata(pickle.dumps(metadata()), SIZES).storage_data == metadata().storage_data


# Code in the pickle


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def payloads(mark: Path) -> Iterator[tuple[str, bytes]]:
    """Pickles that leave `mark` when they are loaded the usual way."""
    touch = f"touch {mark}"
    python = f"open({str(mark)!r}, 'w').close()"
    yield "os.system", pickle.dumps(Call(os.system, touch))
    yield "exec", pickle.dumps(Call(exec, python))
    yield "eval", pickle.dumps(Call(eval, f"open({str(mark)!r}, 'w')"))
    yield "open", pickle.dumps(Call(open, str(mark), "w"))
    yield "first protocol", f"cposix\nsystem\n(S'{touch}'\ntR.".encode()
    yield "inst", f"(S'{touch}'\niposix\nsystem\n.".encode()
    yield "getattr", _getattr_chain(touch)
    yield "in a field", pickle.dumps(metadata(planner_data=Call(os.system, touch)))
    yield "in a size", pickle.dumps(metadata(storage_meta=Call(exec, python)))
    yield "torch.load", pickle.dumps(Call(torch.load, str(mark)))
    yield (
        "dynamo",
        b"ctorch._dynamo.utils\nimport_submodule\n(cos\nsystem\ntR" + f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
    )
    yield (
        "torch.ops",
        b"ctorch.utils.cpp_extension\nload_inline\n(S'x'\nS'y'\ntR" + f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
    )
    yield "nested module", f"cmoorage.checkpoint.durable\nos.system\n(S'{touch}'\ntR.".encode()
    yield (
        "stack global",
        pickle.PROTO + b"\x04" + _unicode("os") + _unicode("system") + b"\x93" + _unicode(touch) + b"\x85R.",
    )
    yield "setstate", pickle.PROTO + b"\x02cbuiltins\nexec\n" + _unicode(python) + b"\x85R."
    yield "import", f"cimportlib\nimport_module\n(S'os'\ntR0cos\nsystem\n(S'{touch}'\ntR.".encode()


def _unicode(text: str) -> bytes:
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def _getattr_chain(touch: str) -> bytes:
    # The getattr that enums of Python 3.11.0 need, asked for something else.
    return f"cbuiltins\ngetattr\n(cbuiltins\ngetattr\nS'__self__'\ntR0cos\nsystem\n(S'{touch}'\ntR.".encode()


def names() -> list[str]:
    return [name for name, _ in payloads(Path("x"))]


@pytest.mark.parametrize("name", names())
def test_no_code_in_metadata_runs(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    data = dict(payloads(mark))[name]
    with pytest.raises(MetadataError):
        parse_metadata(data, SIZES)
    assert not mark.exists()


def test_the_payloads_would_run(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    for name in ("os.system", "getattr", "in a field", "inst", "stack global"):
        pickle.loads(dict(payloads(mark))[name])  # noqa: S301
        assert mark.exists(), name
        mark.unlink()


def test_the_getattr_of_old_enums_gives_nothing(tmp_path: Path) -> None:
    # getattr alone is let in, and is as inert as the rest: what it would fetch is never there to be called.
    mark = tmp_path / "was-here"
    data = (
        b"cbuiltins\ngetattr\n(ctorch.serialization\n_get_layout\nS'__globals__'\ntR"
        b"cbuiltins\ngetattr\n(ctorch\nSize\nS'__subclasses__'\ntR)R."
    )
    with pytest.raises(MetadataError):
        parse_metadata(data, SIZES)
    assert not mark.exists()


def test_classes_stay_as_they_are_whatever_state_is_set_on_them() -> None:
    before = dict(vars(Metadata))
    data = b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}S'__init__'\nctorch\nSize\nstb."
    with pytest.raises(MetadataError):
        parse_metadata(data, SIZES)
    assert dict(vars(Metadata)) == before


# Content that does not fit


def place(*args: Any, **kwargs: Any) -> dict[MetadataIndex, _StorageInfo]:
    return {MetadataIndex("w", [0, 0], 0): _StorageInfo(*args, **kwargs)}


def tensor(size: list[int], *chunks: tuple[list[int], list[int]]) -> dict[str, Any]:
    made = [ChunkStorageMetadata(offsets=torch.Size(o), sizes=torch.Size(s)) for o, s in chunks]
    return {
        "w": TensorStorageMetadata(properties=TensorProperties(dtype=torch.float32), size=torch.Size(size), chunks=made)
    }


def stored(size: list[int], *chunks: tuple[list[int], list[int]]) -> dict[str, Any]:
    """With room in the file for each."""
    places = {MetadataIndex("w", offsets): _StorageInfo("a.distcp", 0, 1600) for offsets, _ in chunks}
    return {"state_dict_metadata": tensor(size, *chunks), "storage_data": places}


WRONG: dict[str, Callable[[], dict[str, Any]]] = {
    "unpickled item": lambda: {"state_dict_metadata": {"w": BytesStorageMetadata()}},
    "path above": lambda: {"storage_data": place("../a.distcp", 0, 1600)},
    "absolute path": lambda: {"storage_data": place("/etc/passwd", 0, 10)},
    "other file": lambda: {"storage_data": place("b.distcp", 0, 1600)},
    "before the file": lambda: {"storage_data": place("a.distcp", -1, 1600)},
    "after the file": lambda: {"storage_data": place("a.distcp", 4000, 1600)},
    "negative length": lambda: {"storage_data": place("a.distcp", 100, -1)},
    "float offset": lambda: {"storage_data": place("a.distcp", 0.0, 1600)},
    "transformed": lambda: {"storage_data": place("a.distcp", 0, 1600, transform_descriptors=["zstd"])},
    "huge": lambda: {"state_dict_metadata": tensor([1 << 40], ([0], [1 << 40]))},
    "no chunk": lambda: {"state_dict_metadata": tensor([4, 2])},
    "part missing": lambda: {"state_dict_metadata": tensor([5, 2], ([0, 0], [4, 2]))},
    "chunk outside": lambda: {"state_dict_metadata": tensor([4, 2], ([1, 0], [4, 2]))},
    "dimensions": lambda: {"state_dict_metadata": tensor([4, 2], ([0], [8]))},
    "not stored": lambda: {"storage_data": {}},
    "no storage": lambda: {"storage_data": None},
    "no tensors": lambda: {"state_dict_metadata": [1]},
    "shared": lambda: {"state_dict_metadata": {"w": metadata()}},
    "twice the same": lambda: stored([4, 2], ([0, 0], [2, 2]), ([0, 0], [2, 2])),
    "one over another": lambda: stored([4, 2], ([0, 0], [3, 2]), ([2, 0], [1, 2])),
    "one over two": lambda: stored([4, 4], ([0, 0], [2, 4]), ([2, 0], [2, 2]), ([1, 1], [2, 2])),
    "one state for two": lambda: {"state_dict_metadata": _one_state_for_two()},
}


def _one_state_for_two() -> dict[str, Any]:
    """The pickle has one dict for both chunks."""
    found = tensor([4, 2], ([0, 0], [2, 2]), ([0, 0], [2, 2]))
    first, second = found["w"].chunks
    second.__dict__ = first.__dict__
    return found


@pytest.mark.parametrize("name", WRONG)
def test_metadata_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(MetadataError):
        parse_metadata(pickle.dumps(metadata(**WRONG[name]())), SIZES)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_a_tensor_cut_into_any_grid_is_read(heights: list[int], widths: list[int]) -> None:
    """Pieces of no rows or columns included: ranks without a row of a small tensor have such."""
    cut = [
        ([sum(heights[:row]), sum(widths[:column])], [heights[row], widths[column]])
        for row, column in itertools.product(range(len(heights)), range(len(widths)))
    ]
    wanted = metadata(**stored([sum(heights), sum(widths)], *cut))
    assert parse_metadata(pickle.dumps(wanted), SIZES).state_dict_metadata == wanted.state_dict_metadata


def test_broken_pickles_are_refused() -> None:
    data = pickle.dumps(metadata())
    for broken in (b"", b".", data[:-20], b"\x80\x09" + data[2:], data[:40] + b"\xff" * 20, b"I1\n.", pickle.dumps([])):
        with pytest.raises(MetadataError):
            parse_metadata(broken, SIZES)


# Through the whole of it: a checkpoint whose hashes are right, since the attacker wrote them


def forge(folder: Path, name: str, data: bytes) -> Manifest:
    checkpoint = folder / "step-00000001"
    manifest = Manifest.from_bytes((checkpoint / MANIFEST).read_bytes())
    (checkpoint / name).write_bytes(data)
    files = {**manifest.files, name: Entry(size=len(data), xxh3_128=digest(data), host="h")}
    forged = Manifest(**{**vars(manifest), "files": files})
    (checkpoint / MANIFEST).write_bytes(forged.to_bytes())
    return forged


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    one = Checkpointer(tmp_path, rank=0, world_size=1, local_rank=0, host="h")
    one.save({"w": torch.ones(4, 2)}, info=SaveInfo(step=1), objects={})
    assert one.wait()
    yield one
    one.close()


def test_forged_metadata_is_no_checkpoint(checkpointer: Checkpointer, tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    forged = forge(tmp_path, METADATA, pickle.dumps(Call(os.system, f"touch {mark}")))
    with pytest.raises(CheckpointError, match=r"posix\.system, which has no place in it"):
        checkpointer.newest()
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        checkpointer.stored(forged)
    assert not mark.exists()


def _evil_items(mark: Path) -> Iterator[bytes]:
    run = Call(os.system, f"touch {mark}")
    for item in (run, {"w": run}, [torch.ones(4, 2), run]):
        file = io.BytesIO()
        torch.save(item, file)
        yield file.getvalue()
    file = io.BytesIO()
    torch.save(item, file, _use_new_zipfile_serialization=False)
    yield file.getvalue()
    yield pickle.dumps(run, protocol=2)


def test_forged_items_are_not_run(checkpointer: Checkpointer, tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    good = checkpointer.newest()
    assert good is not None
    [shard] = [name for name in good.files if name != METADATA]
    for data in _evil_items(mark):
        forge(tmp_path, shard, data)
        raw = metadata(storage_data={MetadataIndex("w", [0, 0], 0): _StorageInfo(shard, 0, len(data))})
        forged = forge(tmp_path, METADATA, pickle.dumps(raw))
        with pytest.raises(CheckpointError, match=r"cannot be loaded|is not a tensor"):
            checkpointer.load(forged, {"w": torch.zeros(4, 2)})
        assert not mark.exists()
