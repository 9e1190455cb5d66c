"""A checkpoint's files: whole or absent, under a manifest that notices every change, pruned in step with uploads."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.checkpoint import layout, retention
from moorage.checkpoint.agree import Held, completion, look, versions
from moorage.checkpoint.durable import FileFacts, digest, write_bytes, writing
from moorage.checkpoint.layout import BEST, IGNORE, MANIFEST, METADATA, UPLOADED, UPLOADING, step_name
from moorage.checkpoint.manifest import Entry, Manifest, ManifestError, read_manifest
from moorage.checkpoint.retention import Rule, Shelf
from moorage.checkpoint.source import Folder, Folders, problem
from moorage.checkpoint.storage import Disk

log = logging.getLogger("test")


def manifest(step: int = 120, **changes: Any) -> Manifest:
    files = {METADATA: Entry(size=4, xxh3_128=digest(b"meta"), host="algo-1"),
             "ab-00000.distcp": Entry(size=5, xxh3_128=digest(b"shard"), host="algo-1")}  # fmt: skip
    given = {"step": step, "epoch": 3, "samples": 640, "strategy": "ddp", "metrics": {"loss": 0.25}, "seed": 7,
             "batch": {"size": 64}, "world_size": 2, "hosts": ("algo-1", "algo-1"), "created": 1.5,
             "versions": {"torch": "2"}, "objects": {"run": {"é": [1, None]}}, "files": files}  # fmt: skip
    return Manifest(**{**given, **changes})


def commit(folder: Path, step: int, *, uploaded: bool = False, **changes: Any) -> Path:
    """A checkpoint as a save leaves it."""
    checkpoint = folder / step_name(step)
    checkpoint.mkdir()
    write_bytes(checkpoint / METADATA, b"meta")
    write_bytes(checkpoint / "ab-00000.distcp", b"shard")
    write_bytes(checkpoint / MANIFEST, manifest(step, **changes).to_bytes())
    if uploaded:
        for path in list(checkpoint.iterdir()):
            path.with_name(path.name + UPLOADING).touch()
            path.with_name(path.name + UPLOADED).touch()
    return checkpoint


# Durable files


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with writing(path) as file:
        file.write(b"12")
        file.write(b"345")
        assert [entry.name for entry in tmp_path.iterdir()] == ["file" + IGNORE]
        facts = file.finish()
        assert not path.exists()
    assert path.read_bytes() == b"12345"
    assert facts == FileFacts(size=5, xxh3_128=digest(b"12345"))
    assert problem(Folder(tmp_path), "file", facts) == ""


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(KeyError), writing(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_named_by_its_errno(small_disk: Path) -> None:
    write_bytes(small_disk / "before", b"x" * 1000)
    with pytest.raises(OSError, match="No space left") as raised, writing(small_disk / "file") as file:
        for _ in range(100):
            file.write(bytes(1 << 18))
    assert raised.value.errno == errno.ENOSPC
    assert [entry.name for entry in small_disk.iterdir()] == ["before"]


def test_a_limit_on_file_size_is_named_by_its_errno(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised, writing(tmp_path / "file") as file:
            file.write(bytes(3 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    write_bytes(tmp_path / "file", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("pipe", "link", "."):
        with pytest.raises(OSError), Folder(tmp_path).open(name):
            pass
        assert problem(Folder(tmp_path), name, FileFacts(size=1, xxh3_128=digest(b"x")))


# The manifest


def test_a_manifest_comes_back_as_it_was() -> None:
    for one in (manifest(), manifest(per_rank=({"a": 1}, None), metrics={"loss": float("inf")}, attempt=3)):
        assert Manifest.from_bytes(one.to_bytes()) == one


def test_every_change_of_a_manifest_is_noticed() -> None:
    data = manifest().to_bytes()
    chance = random.Random(0)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        with pytest.raises(ManifestError):
            Manifest.from_bytes(bytes(flipped))
        with pytest.raises(ManifestError):
            Manifest.from_bytes(data[:place])
        with pytest.raises(ManifestError):
            Manifest.from_bytes(data[:place] + bytes(len(data) - place))


def forged(change: dict[str, Any]) -> bytes:
    """A manifest changed by somebody who knows how to make the checksum right."""
    content = {**json.loads(manifest().to_bytes()), **change, "checksum": "0" * 32}
    text = json.dumps(content).encode()
    return text.replace(b'"checksum": "' + b"0" * 32, b'"checksum": "' + digest(text).encode())


def files_with(name: str, **entry: Any) -> dict[str, Any]:
    good = {"size": 1, "xxh3_128": "0" * 32, "host": "h"}
    return {"files": {METADATA: good, name: {**good, **entry}}}


@pytest.mark.parametrize(
    "change",
    [
        files_with("../../etc/passwd"),
        files_with("/etc/passwd"),
        files_with("a/b"),
        files_with(".."),
        files_with("a\0b"),
        files_with(MANIFEST),
        files_with("x" + UPLOADING),
        files_with("x", size=-1),
        files_with("x", size=1 << 60),
        files_with("x", size=True),
        files_with("x", xxh3_128="zz"),
        files_with("x", xxh3_128=None),
        {"files": {}},
        {"files": {METADATA: 3}},
        {"files": []},
        {"step": "120"},
        {"step": -1},
        {"step": 1 << 70},
        {"world_size": 0},
        {"hosts": ["only one"]},
        {"per_rank": [1, 2, 3]},
        {"metrics": {"loss": []}},
        {"objects": None},
        {"schema": 99},
    ],
    ids=repr,
)  # fmt: skip
def test_a_forged_manifest_is_refused(change: dict[str, Any]) -> None:
    Manifest.from_bytes(forged({}))
    with pytest.raises(ManifestError):
        Manifest.from_bytes(forged(change))


def test_a_manifest_is_that_of_its_folder(tmp_path: Path) -> None:
    commit(tmp_path, 120).rename(tmp_path / step_name(121))
    with pytest.raises(ManifestError, match="that of step-00000120"):
        read_manifest(Folder(tmp_path / step_name(121)))


# Names


def test_only_exact_names_are_steps(tmp_path: Path) -> None:
    for name in ("step-00000120", "step-00000080", "step-123456789"):
        (tmp_path / name).mkdir()
    for name in (
        "step-00000120.sagemaker-uploading",
        "step-120",
        "step-000000120",
        "xstep-00000120",
        "ledger",
        "step-0000012x",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000001").touch()
    (tmp_path / "step-00000002").symlink_to(tmp_path / "step-00000120")
    assert layout.steps(tmp_path) == [80, 120, 123456789]


# Choosing


def test_the_newest_step_comes_first_then_the_later_attempt_then_the_more_common() -> None:
    held = {
        0: {120: Held(manifest="a"), 80: Held(manifest="b", attempt=0), 160: Held(reason="never committed")},
        2: {120: Held(manifest="a"), 80: Held(manifest="c", attempt=1)},
        4: {120: Held(manifest="d"), 80: Held(manifest="b", attempt=0)},
    }
    assert [(v.step, v.manifest, v.holders) for v in versions(held)] == [
        (120, "a", (0, 2)), (120, "d", (4,)), (80, "c", (2,)), (80, "b", (0, 4)),
    ]  # fmt: skip


@given(st.dictionaries(st.integers(0, 9), st.sets(st.sampled_from("abcd")), min_size=1))
def test_every_store_gets_every_file_once_or_a_reason_why_not(lacking: dict[int, set[str]]) -> None:
    files = {name: FileFacts(size=ord(name), xxh3_128="") for name in "abcd"}
    problems = {leader: dict.fromkeys(names, "missing") for leader, names in lacking.items()}
    plan = completion(files, problems, {leader: f"host-{leader}" for leader in lacking})
    nowhere = {name for name in files if all(name in names for names in lacking.values())}
    assert set(plan.missing) == nowhere
    for transfer in plan.transfers:
        assert transfer.file not in lacking[transfer.source]
    got = {(target, transfer.file) for transfer in plan.transfers for target in transfer.targets}
    assert got == {(leader, name) for leader, names in lacking.items() for name in names - nowhere}
    assert len(got) == sum(len(transfer.targets) for transfer in plan.transfers)


def test_the_sending_is_spread_by_bytes() -> None:
    files = {name: FileFacts(size=size, xxh3_128="") for name, size in {"a": 100, "b": 60, "c": 30}.items()}
    everything = dict.fromkeys(files, "missing")
    plan = completion(files, {0: {}, 1: {}, 2: everything}, {})
    assert [(t.file, t.source) for t in plan.transfers] == [("a", 0), ("b", 1), ("c", 1)]


def test_a_look_tells_what_a_folder_holds(tmp_path: Path) -> None:
    (commit(tmp_path, 120) / BEST).touch()
    (commit(tmp_path, 160) / MANIFEST).unlink()
    (commit(tmp_path, 200) / MANIFEST).write_bytes(b"{}")
    found = look(Folders(tmp_path))
    assert found[120] == Held(manifest=digest(manifest(120).to_bytes()), best=True, committed=True)
    assert not found[160].committed and "never committed" in found[160].reason
    assert found[200].committed and not found[200].manifest


# Retention


def prune(folder: Path, keep: int, **options: Any) -> list[int]:
    """As after a commit of the only host, algo-1."""
    shelf = Shelf(Disk(folder), Rule(keep=keep, every=options.pop("every", 0)), log, hosts={"algo-1"}, **options)
    return shelf.prune([shelf.look()])


def held_steps(folder: Path) -> list[int]:
    return layout.steps(folder)


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in range(10, 70, 10):
        commit(tmp_path, step)
    retention.mark_best(Disk(tmp_path), 10)
    retention.mark_best(Disk(tmp_path), 20)
    assert prune(tmp_path, 2) == [10, 30, 40]
    assert held_steps(tmp_path) == [20, 50, 60]


def test_incomplete_ones_do_not_count_and_go_only_when_a_newer_one_is_committed(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        commit(tmp_path, step)
    for step in (20, 40):
        (tmp_path / step_name(step) / MANIFEST).unlink()
    prune(tmp_path, 2)
    assert held_steps(tmp_path) == [10, 30, 40]


def test_nothing_goes_before_anything_is_committed(tmp_path: Path) -> None:
    (commit(tmp_path, 10) / MANIFEST).unlink()
    assert prune(tmp_path, 1) == []
    assert held_steps(tmp_path) == [10]


def test_what_is_being_uploaded_waits_for_the_next_time(tmp_path: Path) -> None:
    old = commit(tmp_path, 10)
    (old / ("ab-00000.distcp" + UPLOADING)).touch()
    commit(tmp_path, 20, uploaded=True)
    assert prune(tmp_path, 1) == []
    assert held_steps(tmp_path) == [10, 20]
    (old / ("ab-00000.distcp" + UPLOADED)).touch()
    assert prune(tmp_path, 1) == [10]


def test_files_of_another_attempt_and_what_was_moved_aside_go_at_last(tmp_path: Path) -> None:
    checkpoint = commit(tmp_path, 10)
    for name in ("cd-00000.distcp", "cd-00000.distcp" + UPLOADED, "ef-00001.distcp" + IGNORE):
        (checkpoint / name).touch()
    (checkpoint / ("ab-00000.distcp" + UPLOADED)).touch()
    for step in (10, 20):
        commit(tmp_path, step + 100)
        layout.move_aside(tmp_path, step + 100)
    commit(tmp_path, 110)
    prune(tmp_path, 3)
    assert sorted(entry.name for entry in checkpoint.iterdir()) == sorted(
        [METADATA, MANIFEST, "ab-00000.distcp", "ab-00000.distcp" + UPLOADED]
    )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "damaged-00000120-1",
        "step-00000010",
        "step-00000110",
    ]


def test_what_is_moved_aside_is_not_uploaded_again(tmp_path: Path) -> None:
    commit(tmp_path, 10, uploaded=True)
    aside = layout.move_aside(tmp_path, 10)
    assert aside == tmp_path / "damaged-00000010-1"
    assert sorted(path.name for path in aside.iterdir()) == sorted(
        name + IGNORE for name in (METADATA, MANIFEST, "ab-00000.distcp")
    )


def test_moving_aside_leaves_what_is_being_uploaded_but_not_as_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = commit(tmp_path, 10)
    (checkpoint / (METADATA + UPLOADING)).touch()
    assert layout.move_aside(tmp_path, 10) is None
    assert layout.committed(tmp_path) == [] and (checkpoint / METADATA).exists()


def test_listing_choosing_and_pruning_need_no_torch() -> None:
    code = "import sys; from moorage.checkpoint import agree, manifest, retention; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
