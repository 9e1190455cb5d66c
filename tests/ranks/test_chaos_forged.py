"""Checkpoints written by an enemy, with hashes that are right: nothing in them is executed by a start from them."""

from __future__ import annotations

import dataclasses
import io
import json
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
from moorage.checkpoint.layout import MANIFEST, METADATA, UPLOADED
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


@pytest.mark.full(len(METADATA_PAYLOADS), short=len(METADATA_PAYLOADS))
def test_no_pickle_in_metadata_is_executed(tmp_path: Path, stopped: ChaosJob, chaos_count: int) -> None:
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
    print(f"0 of {chaos_count} payloads in metadata executed; the checkpoint before them used, bit-equal")


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


Content = dict[str, Any]
Forgery = Callable[[Content], object]
"""Changes what a manifest says, or returns what it is instead."""


def _lists(name: str) -> Forgery:
    """A file that is nowhere but on the first host, where `name` leads out of the checkpoint: a resume copies files."""

    def forge(content: Content) -> None:
        content["files"][name] = {"size": len(PADDING), "xxh3_128": digest(PADDING), "host": content["hosts"][0]}

    return forge


def _of_a_file(**facts: object) -> Forgery:
    def forge(content: Content) -> None:
        content["files"][METADATA].update(facts)

    return forge


def _says(**values: object) -> Forgery:
    def forge(content: Content) -> None:
        content.update(values)

    return forge


def _deep(content: Content) -> str:
    return json.dumps({**content, "objects": {}}).replace('"objects": {}', f'"objects": {"[" * 200_000}{"]" * 200_000}')


def _long_number(content: Content) -> str:
    return json.dumps({**content, "epoch": 0}).replace('"epoch": 0', f'"epoch": {"9" * 10_000}')


OUT = "../../escaped"
MANIFESTS: dict[str, tuple[Forgery, str]] = {
    "a path up": (_lists(OUT), "is not the name of a checkpoint file"),
    "an absolute path": (_lists("/tmp/../escaped"), "is not the name of a checkpoint file"),
    "a path with a null": (_lists(f"x\0{OUT}"), "is not the name of a checkpoint file"),
    "a folder within": (_lists("more/x"), "is not the name of a checkpoint file"),
    "the folder above": (_lists(".."), "is not the name of a checkpoint file"),
    "the manifest itself": (_lists(MANIFEST), "is not the name of a checkpoint file"),
    "a mark of the upload": (_lists(METADATA + UPLOADED), "is not the name of a checkpoint file"),
    "a long name": (_lists("x" * 5000), "is not the name of a checkpoint file"),
    "a petabyte": (_of_a_file(size=1 << 50), ".metadata: "),
    "more than any disk": (_of_a_file(size=1 << 80), "files['.metadata']: size 1208925819614629174706176"),
    "fewer bytes than none": (_of_a_file(size=-1), "files['.metadata']: size -1"),
    "a size of truth": (_of_a_file(size=True), "files['.metadata']: size True"),
    "a size in letters": (_of_a_file(size="1"), "files['.metadata']: size '1'"),
    "a hash of a number": (_of_a_file(xxh3_128=1), "files['.metadata']: xxh3_128 1"),
    "more ranks than atoms": (_says(world_size=1 << 62), f"hosts or per_rank are not those of {1 << 62} ranks"),
    "no ranks": (_says(world_size=0), "world_size must be a whole number of at least 1"),
    "a step of letters": (_says(step="../1"), "step must be a whole number of at least 0"),
    "the step of another": (_says(step=1), "the manifest is that of step-00000001"),
    "files in a list": (_says(files=[METADATA]), "files must be a dict"),
    "hosts in a text": (_says(hosts="localhost"), "hosts must be a list"),
    "objects in a list": (_says(objects=[]), "objects must be a dict"),
    "a metric of lists": (_says(metrics={"loss": [1]}), "is not a number"),
    "no object at all": (lambda content: json.dumps([content]), "the manifest is not an object"),
    "200,000 lists in lists": (_deep, "the manifest is not JSON: "),
    "a number of 10,000 digits": (_long_number, "the manifest is not JSON: "),
}


def _forge_manifest(path: Path, forge: Forgery) -> None:
    """With a checksum that is right."""
    content = json.loads(path.read_bytes())
    content["checksum"] = "0" * 32
    text = str(forge(content) or json.dumps(content)).encode()
    path.write_bytes(text.replace(b"0" * 32, digest(text).encode(), 1))


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.full(len(MANIFESTS), short=len(MANIFESTS))
def test_no_manifest_leads_out_of_its_checkpoint(tmp_path: Path, chaos_count: int) -> None:
    """One forgery in each of the newest checkpoints, on both of the hosts: one start refuses them all.

    What the first host has under the names in them, the second would be sent.
    """
    job = ChaosJob(tmp_path / "job", hosts=2, ranks=1)
    with job.start(checkpoint_steps=2, keep=2 * chaos_count) as hosts:
        assert await_random_moment(job, hosts, dice("manifests"), steps=range(3 * chaos_count, 110)), reports(hosts)
        hosts[0].signal()
        assert [host.ends(DEADLINE) for host in hosts] == [143, 143], reports(hosts)
    *_, good = found = sorted(job.folders[0].checkpoints.glob("step-*"), reverse=True)[: chaos_count + 1]
    assert len(found) == chaos_count + 1
    for checkpoint, (forge, _) in zip(found, MANIFESTS.values(), strict=False):
        for folder in job.folders:
            _forge_manifest(folder.checkpoints / checkpoint.name / MANIFEST, forge)
        (checkpoint / OUT).write_bytes(PADDING)
    before = _files(job.folders[1].base)
    hosts = job.finishes()
    for checkpoint, (name, (_, why)) in zip(found, MANIFESTS.items(), strict=False):
        told = [line for line in hosts[0].stderr.splitlines() if checkpoint.name in line and why in line]
        assert told, f"{checkpoint.name}: {name}\n{reports(hosts)}"
    assert [event["step"] for event in job.events("resume")] == [int(good.name[5:])]
    second = job.folders[1].base
    new = {path.relative_to(second).parts[0] for path in _files(second) - before}
    assert new <= {"checkpoints", "output", "model"}, new
    assert not [path for path in second.rglob("*") if path.name in ("escaped", "more")]
    job.check_equal(left_alone(strategy="ddp"))  # its two ranks are on one host: where they are changes no bit
    print(
        f"0 of {chaos_count} forged manifests used, 0 files written outside; the checkpoint before them used, bit-equal"
    )
