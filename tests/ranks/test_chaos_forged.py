"""Checkpoints written by an enemy, with hashes that are right: nothing in them is executed by a start from them."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from moorage.checkpoint.durable import digest
from moorage.checkpoint.layout import MANIFEST, METADATA
from moorage.checkpoint.manifest import Entry, Manifest, read_manifest
from moorage.checkpoint.source import Folder
from ranks.chaos import DEADLINE, ChaosJob, await_random_moment, dice, left_alone, reports

ITEM = "model/0.weight"


class Call:
    """Pickles as a call, made when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> Any:
        return self._call


@dataclasses.dataclass(kw_only=True)
class Forger:
    """Of one checkpoint. What it puts into it leaves `mark` when it is executed."""

    checkpoint: Path
    mark: Path

    def call(self) -> Call:
        return Call(os.system, f"touch {self.mark}")

    def metadata(self) -> Metadata:
        found = pickle.loads((self.checkpoint / METADATA).read_bytes())  # noqa: S301 - still our own
        assert isinstance(found, Metadata)
        return found

    def put(self, name: str, data: bytes) -> None:
        """Replace a file, and have the manifest say that this is how it should be."""
        (self.checkpoint / name).write_bytes(data)
        manifest, _ = read_manifest(Folder(self.checkpoint))
        files = {**manifest.files, name: Entry(size=len(data), xxh3_128=digest(data), host="algo-1")}
        forged = Manifest(**{**vars(manifest), "files": files})
        (self.checkpoint / MANIFEST).write_bytes(forged.to_bytes())

    def put_item(self, data: bytes, *, as_bytes: bool = False) -> None:
        """Let the item ITEM be `data`."""
        metadata = self.metadata()
        index = next(index for index in metadata.storage_data if index.fqn == ITEM)
        name = metadata.storage_data[index].relative_path
        shard = (self.checkpoint / name).read_bytes()
        metadata.storage_data[index] = _StorageInfo(name, len(shard), len(data))
        if as_bytes:
            metadata.storage_data[MetadataIndex(ITEM)] = metadata.storage_data.pop(index)
            metadata.state_dict_metadata[ITEM] = BytesStorageMetadata()
        self.put(name, shard + data)
        self.put(METADATA, pickle.dumps(metadata))


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def _system(forger: Forger) -> bytes:
    return pickle.dumps(forger.call())


def _exec(forger: Forger) -> bytes:
    return pickle.dumps(Call(exec, f"open({str(forger.mark)!r}, 'w').close()"))


def _process(forger: Forger) -> bytes:
    return pickle.dumps(Call(subprocess.check_call, ["touch", str(forger.mark)]))


def _instance(forger: Forger) -> bytes:
    """The opcode INST of protocol 0."""
    return f"(S'touch {forger.mark}'\nios\nsystem\n.".encode()


def _hidden(forger: Forger) -> bytes:
    """In metadata that is right otherwise."""
    metadata = forger.metadata()
    metadata.planner_data = {"model": forger.call()}
    return pickle.dumps(metadata)


def _hidden_in_a_place(forger: Forger) -> bytes:
    metadata = forger.metadata()
    metadata.storage_data[next(iter(metadata.storage_data))] = forger.call()
    return pickle.dumps(metadata)


def _dotted(forger: Forger) -> bytes:
    """A name of torch by its module, and os by the dots behind it."""
    dotted = b"\x80\x04" + _text("torch") + _text("serialization.os.system") + b"\x93"
    return dotted + _text(f"touch {forger.mark}") + b"\x85R."


def _allowed_names_only(forger: Forger) -> bytes:
    """getattr and torch.serialization._get_layout occur in real metadata: os is within their reach."""
    get = b"cbuiltins\ngetattr\n("
    modules = get + b"ctorch.serialization\n_get_layout\nS'__globals__'\ntR"
    system = get + get + modules + b"S'get'\ntR(S'os'\ntRS'system'\ntR"
    return system + f"(S'touch {forger.mark}'\ntR.".encode()


METADATA_PAYLOADS: tuple[Callable[[Forger], bytes], ...] = (
    _system,
    _exec,
    _process,
    _instance,
    _hidden,
    _hidden_in_a_place,
    _dotted,
    _allowed_names_only,
)

PADDING = bytes(1 << 16)
"""So that no item is too short for its shape: what is shorter is refused before it is read."""


def _zip_item(forger: Forger) -> bytes:
    file = io.BytesIO()
    torch.save([forger.call(), PADDING], file)
    return file.getvalue()


def _zip_item_with_a_tensor(forger: Forger) -> bytes:
    file = io.BytesIO()
    torch.save({"tensor": torch.zeros(48, 64), "more": forger.call(), "padding": PADDING}, file)
    return file.getvalue()


def _legacy_item(forger: Forger) -> bytes:
    file = io.BytesIO()
    torch.save([forger.call(), PADDING], file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _plain_item(forger: Forger) -> bytes:
    return pickle.dumps([forger.call(), PADDING], protocol=2)


ITEM_PAYLOADS: tuple[Callable[[Forger], bytes], ...] = (_zip_item, _zip_item_with_a_tensor, _legacy_item, _plain_item)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> ChaosJob:
    job = ChaosJob(tmp_path_factory.mktemp("stopped"), strategy="auto", ranks=1)
    with job.start(checkpoint_steps=5, keep=20) as hosts:
        assert await_random_moment(job, hosts, dice("forged"), steps=range(80, 120)), reports(hosts)
        hosts[0].signal()
        assert hosts[0].ends(DEADLINE) == 143, reports(hosts)
    return job


def _copy(stopped: ChaosJob, base: Path) -> ChaosJob:
    shutil.copytree(stopped.base, base)
    return ChaosJob(base, strategy="auto", ranks=1)


def _checkpoints(job: ChaosJob) -> list[Path]:
    return sorted(job.folders[0].checkpoints.glob("step-*"), reverse=True)


def test_no_pickle_in_metadata_is_executed(tmp_path: Path, stopped: ChaosJob) -> None:
    """One payload in each of the newest checkpoints: one start reads them all, and uses the one before."""
    job, mark = _copy(stopped, tmp_path / "job"), tmp_path / "executed"
    found = _checkpoints(job)
    assert len(found) > len(METADATA_PAYLOADS)
    for checkpoint, payload in zip(found, METADATA_PAYLOADS, strict=False):
        forger = Forger(checkpoint=checkpoint, mark=mark)
        data = payload(forger)
        pickle.loads(data)  # noqa: S301 - it does execute
        assert mark.exists(), payload.__name__
        mark.unlink()
        forger.put(METADATA, data)
    [host] = job.finishes()
    assert not mark.exists()
    for checkpoint, payload in zip(found, METADATA_PAYLOADS, strict=False):
        line = f"checkpoint {checkpoint.name} cannot be used: on algo-1: .metadata: "
        assert line in host.stderr, f"{payload.__name__}\n{host.report()}"
    good = found[len(METADATA_PAYLOADS)]
    assert [event["step"] for event in job.events("resume")] == [int(good.name[5:])]
    job.check_equal(left_alone(strategy="auto", ranks=1))
    print(f"0 of {len(METADATA_PAYLOADS)} payloads in metadata executed; the checkpoint before them used, bit-equal")


@pytest.mark.full(5, short=2)
def test_no_pickle_in_an_item_is_executed(tmp_path: Path, stopped: ChaosJob, chaos_count: int) -> None:
    """Damage does not look like this, so nothing is tried instead: the job ends with a word of warning."""
    cases = [(ITEM_PAYLOADS[0], True), *((payload, False) for payload in ITEM_PAYLOADS)]
    for number, (payload, as_bytes) in enumerate(cases[:chaos_count]):
        job, mark = _copy(stopped, tmp_path / str(number)), tmp_path / "executed"
        newest = _checkpoints(job)[0]
        forger = Forger(checkpoint=newest, mark=mark)
        data = payload(forger)
        _load_as_usual(data)
        assert mark.exists(), payload.__name__
        mark.unlink()
        forger.put_item(data, as_bytes=as_bytes)
        with job.start() as hosts:
            code = hosts[0].ends(DEADLINE)
        assert not mark.exists(), f"{payload.__name__} was executed\n{reports(hosts)}"
        if as_bytes:  # seen in the metadata already, before anything was loaded
            assert f"checkpoint {newest.name} cannot be used" in hosts[0].stderr
            job.check_equal(left_alone(strategy="auto", ranks=1))
        else:
            assert code == 74, reports(hosts)
            assert f"checkpoint {newest.name} holds something that is not a tensor" in str(hosts[0].failure)
    print(f"0 of {chaos_count} payloads in items executed")


def _load_as_usual(data: bytes) -> None:
    try:
        torch.load(io.BytesIO(data), weights_only=False)
    except (pickle.UnpicklingError, RuntimeError):  # a plain pickle: torch looks for its own marks first
        pickle.loads(data)  # noqa: S301 - it does execute
