"""Pruned in step with the upload agent: S3 has a whole checkpoint whatever the agent has done so far."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.checkpoint import layout, uploads
from moorage.checkpoint.durable import digest, write_bytes
from moorage.checkpoint.layout import BEST, IGNORE, MANIFEST, METADATA, UPLOADED, UPLOADING, step_name, steps
from moorage.checkpoint.manifest import Entry, Manifest
from moorage.checkpoint.retention import Look, Part, Rule, Shelf, complete, staying
from moorage.checkpoint.storage import Disk

log = logging.getLogger("test")

SHARDS = {"algo-1": "ab-00000.distcp", "algo-2": "ab-00001.distcp"}


def commit(folder: Path, step: int, *, host: str = "algo-1", hosts: tuple[str, ...] = ("algo-1",)) -> Path:
    """What a save leaves on `host`, where the hosts share no disk."""
    checkpoint = folder / step_name(step)
    checkpoint.mkdir(parents=True)
    files = {METADATA: Entry(size=4, xxh3_128=digest(b"meta"), host=hosts[0])}
    files |= {SHARDS[name]: Entry(size=5, xxh3_128=digest(b"shard"), host=name) for name in hosts}
    write_bytes(checkpoint / METADATA, b"meta")
    write_bytes(checkpoint / SHARDS[host], b"shard")
    write_bytes(checkpoint / MANIFEST, Manifest(step=step, world_size=len(hosts), hosts=hosts, files=files).to_bytes())
    return checkpoint


def begin(path: Path) -> None:
    path.with_name(path.name + UPLOADING).touch()


def upload(checkpoint: Path) -> None:
    """As the agent does, for every file that has its name."""
    for path in list(checkpoint.iterdir()):
        if not path.name.endswith((IGNORE, UPLOADING, UPLOADED)):
            begin(path)
            path.with_name(path.name + UPLOADED).touch()


def shelf_of(folder: Path, *, keep: int = 1, host: str = "algo-1", **options: Any) -> Shelf:
    rule = Rule(keep=keep, every=options.pop("every", 0))
    return Shelf(Disk(folder), rule, log, hosts={host}, **options)


def prune(*shelves: Shelf) -> None:
    """As all hosts do after a commit."""
    looks = [shelf.look() for shelf in shelves]
    for shelf in shelves:
        shelf.prune(looks)


def save(folder: Path, shelf: Shelf, *steps: int) -> None:
    for step in steps:
        commit(folder, step)
        prune(shelf)


def is_uploaded_step_by_step(folder: Path, shelf: Shelf) -> None:
    """From 10 on: three more come, then the agent uploads."""
    save(folder, shelf, 20, 30, 40)
    assert steps(folder) == [10, 20, 40]
    upload(folder / step_name(20))
    prune(shelf)
    assert steps(folder) == [20, 40]


# The marks


def names(*given: str, **times: float) -> dict[str, float]:
    return {**dict.fromkeys(given, 1.0), **times}


def test_a_checkpoint_is_uploaded_when_every_file_is_marked() -> None:
    files = [METADATA, "ab-00000.distcp", MANIFEST]
    marks = [name + UPLOADED for name in files]
    others = [BEST, "x.distcp" + IGNORE, "ab-00000.distcp" + UPLOADING]
    assert uploads.is_uploaded(names(*files, *marks, *others))
    assert not uploads.is_uploaded(names(*files, *marks[1:]))
    assert not uploads.is_uploaded(names(*files[:2], *marks[:2]))
    assert list(uploads.waiting(names(*files, *marks[:2]))) == [MANIFEST]


def test_a_mark_older_than_its_file_is_that_of_another_file() -> None:
    listing = {MANIFEST: 5.0, MANIFEST + UPLOADED: 4.0}
    assert uploads.waiting(listing) == {MANIFEST: 5.0}
    assert not uploads.waiting({**listing, MANIFEST + UPLOADED: 5.0})


def test_it_is_said_once_per_doubling_that_the_agent_falls_behind(caplog: pytest.LogCaptureFixture) -> None:
    lag = uploads.Lag(600, log)
    for seconds in (599, 600, 700, 1199, 1200, 5000, 9000, 30, 601):
        lag.tell("step-00000010/ab-00000.distcp" if seconds > 50 else "", seconds)
    said = [record.getMessage() for record in caplog.records]
    assert [text.split("waited for ")[1].split(" minutes")[0] for text in said] == ["10", "20", "83", "10"]
    assert all("step-00000010/ab-00000.distcp" in text for text in said)
    caplog.clear()
    uploads.Lag(0, log).tell("file", 1e9)
    assert not caplog.records


# What stays


def test_without_an_agent_the_newest_stay(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        commit(tmp_path, step)
        prune(shelf_of(tmp_path))
    assert steps(tmp_path) == [30]


def test_the_newest_uploaded_one_stays_and_the_next_until_the_next_is_uploaded(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path)
    upload(commit(tmp_path, 10))
    is_uploaded_step_by_step(tmp_path, shelf)
    upload(tmp_path / step_name(40))
    prune(shelf)
    assert steps(tmp_path) == [40]


def test_one_that_the_agent_has_begun_stays_before_one_it_has_not(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path)
    for step in (10, 20):
        commit(tmp_path, step)
    for name in (METADATA + UPLOADING, METADATA + UPLOADED):
        (tmp_path / step_name(20) / name).touch()
    save(tmp_path, shelf, 30, 40)
    assert steps(tmp_path) == [20, 40]


def test_the_one_gone_on_from_stays_until_a_newer_one_is_uploaded(tmp_path: Path) -> None:
    commit(tmp_path, 10)
    shelf = shelf_of(tmp_path, agent=True)
    shelf.went_on_from(10)
    is_uploaded_step_by_step(tmp_path, shelf)


def test_gone_on_from_one_that_was_not_uploaded_the_uploaded_one_stays(tmp_path: Path) -> None:
    upload(commit(tmp_path, 10))
    commit(tmp_path, 20)
    shelf = shelf_of(tmp_path)
    shelf.went_on_from(20)
    commit(tmp_path, 30)
    prune(shelf)
    assert steps(tmp_path) == [10, 20, 30]


def test_no_host_deletes_its_part_before_all_have_uploaded_a_newer_one(tmp_path: Path) -> None:
    hosts = ("algo-1", "algo-2")
    folders = {host: tmp_path / host for host in hosts}
    shelves = [shelf_of(folders[host], host=host) for host in hosts]
    for step in (10, 20, 30):
        for host in hosts:
            commit(folders[host], step, host=host, hosts=hosts)
        if step == 10:
            for host in hosts:
                upload(folders[host] / step_name(step))
        upload(folders["algo-1"] / step_name(step))
        prune(*shelves)
    assert [steps(folder) for folder in folders.values()] == [[10, 20, 30]] * 2
    upload(folders["algo-2"] / step_name(20))
    prune(*shelves)
    assert [steps(folder) for folder in folders.values()] == [[20, 30]] * 2


def test_the_best_of_the_uploaded_ones_stays_until_a_better_one_is_uploaded(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path)
    for step in (10, 20):
        checkpoint = commit(tmp_path, step)
        (checkpoint / BEST).touch()
        if step == 10:
            upload(checkpoint)
            upload(commit(tmp_path, 15))
    commit(tmp_path, 30)
    prune(shelf)
    assert steps(tmp_path) == [10, 15, 20, 30]
    upload(tmp_path / step_name(20))
    prune(shelf)
    assert steps(tmp_path) == [20, 30]


def test_one_in_so_many_steps_stays_for_good(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, every=100)
    save(tmp_path, shelf, 40, 90, 130, 170, 200, 230, 290, 510)
    assert steps(tmp_path) == [130, 200, 510]
    commit(tmp_path, 520)
    prune(shelf_of(tmp_path, every=100))
    assert steps(tmp_path) == [130, 200, 510, 520]


def test_one_that_lacks_a_file_is_not_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20, 30, 40):
        commit(tmp_path, step)
    (tmp_path / step_name(20) / SHARDS["algo-1"]).unlink()
    (tmp_path / step_name(30) / METADATA).write_bytes(b"me")
    prune(shelf_of(tmp_path, keep=2))
    assert steps(tmp_path) == [10, 40]
    assert "step-00000020 lacked some of its files: removed" in caplog.text


def test_a_folder_that_one_host_cannot_read_stays_on_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20):
        commit(tmp_path, step)
    shelf = shelf_of(tmp_path)
    shelf.prune([shelf.look(), shelf_of(tmp_path / "gone").look()])
    assert steps(tmp_path) == [10, 20]
    assert "ENOENT" in caplog.text


def test_what_is_uploading_is_not_deleted_even_when_it_begins_late(tmp_path: Path) -> None:
    """The manifest goes, so that it is no checkpoint any more, and the rest the next time."""
    checkpoint = commit(tmp_path, 10)
    begin(checkpoint / METADATA)
    (checkpoint / MANIFEST).unlink()
    assert not layout.remove(checkpoint)
    assert {path.name for path in checkpoint.iterdir()} == {METADATA, METADATA + UPLOADING, SHARDS["algo-1"]}
    (checkpoint / (METADATA + UPLOADED)).touch()
    assert layout.remove(checkpoint) and not checkpoint.exists()


def test_the_file_that_has_waited_longest_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf = shelf_of(tmp_path, keep=9, agent=True, upload_bound=60)
    for step, age in ((10, 500), (20, 130), (30, 0)):
        checkpoint = commit(tmp_path, step)
        for path in checkpoint.iterdir():
            changed = path.stat().st_mtime - age
            os.utime(path, (changed, changed))
    shelf.went_on_from(10)
    shelf.warn(shelf.look())
    assert "step-00000020/" in caplog.text and "waited for 2 minutes" in caplog.text
    caplog.clear()
    upload(tmp_path / step_name(20))
    shelf.warn(shelf.look())
    assert not caplog.records


# Whatever order the agent takes the files in


@given(st.integers(0, 1 << 30))
def test_s3_never_loses_its_last_whole_checkpoint(seed: int) -> None:
    """Two hosts commit and prune, an agent each uploads at random; S3 follows what is deleted."""
    chance = random.Random(seed)
    keep, every, restored = chance.randint(1, 3), chance.choice([0, 25]), chance.choice([-1, 10])
    here: dict[int, tuple[set[int], set[int]]] = {}  # by step: the hosts that have begun, and that have uploaded
    if restored == 10:
        here[10] = (set(), set())
    in_s3 = [restored == 10]
    for step in range(20, 200, 10):
        here[step] = (set(), set())
        for _ in range(chance.randint(0, 4)):
            at, host = chance.choice(list(here)), chance.randint(0, 1)
            begun, done = here[at]
            (done if host in begun else begun).add(host)
        in_s3[0] |= any(len(done) == 2 for _, done in here.values())
        looks = [look_of(here, host) for host in (0, 1)]
        stay = staying(looks, Rule(keep=keep, every=every), restored)
        assert stay >= set(complete(looks)[-keep:])
        assert len(stay) <= keep + 4 + (200 // every if every else 0)
        here = {at: marks for at, marks in here.items() if at in stay or at == step}
        if in_s3[0]:
            assert any(len(done) == 2 or at == restored for at, (_, done) in here.items())


def look_of(here: Mapping[int, tuple[set[int], set[int]]], host: int) -> Look:
    return Look(
        agent=True,
        parts={
            step: Part(whole=False, own=True, begun=host in begun, uploaded=host in done)
            for step, (begun, done) in here.items()
        },
    )
