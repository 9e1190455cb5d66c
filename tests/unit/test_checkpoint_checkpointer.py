"""Checkpoints of one rank: saved behind the training, damage noticed, nothing lost when a save fails."""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from moorage.checkpoint.checkpointer import Checkpointer, SaveInfo
from moorage.checkpoint.layout import IGNORE, MANIFEST, METADATA, UPLOADING, step_name, steps
from moorage.checkpoint.manifest import Manifest
from moorage.errors import CheckpointError


def tensors(step: int, size: int = 1000) -> dict[str, Tensor]:
    return {"model/w": torch.full((size, 4), float(step)), "model/b": torch.arange(7) + step}


def save(one: Checkpointer, step: int, *, best: bool = False) -> None:
    assert one.save(tensors(step), info=SaveInfo(step=step, metrics={"loss": 1 / step}), objects={"s": step}, best=best)
    outcome = one.wait()
    assert outcome is not None and outcome.committed and outcome.step == step, outcome


def loads(one: Checkpointer, manifest: Manifest) -> bool:
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}
    one.load(manifest, into)
    return all(torch.equal(into[name], tensor) for name, tensor in tensors(manifest.step).items())


@pytest.fixture
def open_folder() -> Iterator[Callable[..., Checkpointer]]:
    opened: list[Checkpointer] = []

    def opener(folder: Path, keep: int = 2) -> Checkpointer:
        opened.append(Checkpointer(folder, rank=0, world_size=1, local_rank=0, host="algo-1", keep=keep, attempt=1))
        return opened[-1]

    yield opener
    for one in opened:
        one.close()


Open = Callable[..., Checkpointer]


def test_what_is_saved_is_loaded(open_folder: Open, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    one = open_folder(folder)
    assert one.newest() is None
    save(one, 10)
    found = open_folder(folder).newest()
    assert found is not None and loads(one, found)
    assert (found.step, found.world_size, found.hosts, found.attempt) == (10, 1, ("algo-1",), 1)
    assert (
        found.metrics == {"loss": 0.1} and found.objects == {"s": 10} and found.versions["torch"] == torch.__version__
    )
    assert set(one.stored(found)) == {"model/w", "model/b"}
    assert sorted(path.name for path in folder.iterdir()) == [step_name(10)]
    assert set(found.files) | {MANIFEST} == {path.name for path in (folder / step_name(10)).iterdir()}


def wanted(*_: object) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}


def test_it_is_loaded_while_it_is_verified(open_folder: Open, tmp_path: Path) -> None:
    save(open_folder(tmp_path), 10)
    one = open_folder(tmp_path)
    found = one.newest(wanted)
    assert found is not None
    ahead = one.ahead(found)
    assert ahead is not None and all(torch.equal(ahead[name], tensor) for name, tensor in tensors(10).items())
    assert one.ahead(found) is None, "once: it is the program's own by now"


def test_a_damaged_one_that_was_loaded_is_loaded_over(open_folder: Open, tmp_path: Path) -> None:
    one = open_folder(tmp_path)
    save(one, 10)
    save(one, 20)
    shard = max((tmp_path / step_name(20)).glob("*.distcp"), key=lambda path: path.stat().st_size)
    twenty, other = (torch.full((1000, 4), value).numpy().tobytes() for value in (20.0, -1.0))
    assert twenty in shard.read_bytes()
    shard.write_bytes(shard.read_bytes().replace(twenty, other))
    again, live = open_folder(tmp_path), wanted()
    found = again.newest(lambda *_: live)
    assert found is not None and found.step == 10
    ahead = again.ahead(found)
    assert ahead is live and all(torch.equal(live[name], tensor) for name, tensor in tensors(10).items())


def test_a_program_that_wants_something_else_is_told_by_the_loading_itself(open_folder: Open, tmp_path: Path) -> None:
    save(open_folder(tmp_path), 10)
    one = open_folder(tmp_path)

    def fails(*_: object) -> dict[str, Tensor]:
        raise CheckpointError("the checkpoint is that of another model or program")

    found = one.newest(fails)
    assert found is not None and one.ahead(found) is None and loads(one, found)


def test_plain_dcp_reads_it(open_folder: Open, tmp_path: Path) -> None:
    save(open_folder(tmp_path), 10)
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(into, storage_reader=dcp.FileSystemReader(tmp_path / step_name(10)), no_dist=True)
    assert all(torch.equal(into[name], tensor) for name, tensor in tensors(10).items())


def test_training_may_change_all_it_gave_at_once(open_folder: Open, tmp_path: Path) -> None:
    one = open_folder(tmp_path)
    state = tensors(10, size=500_000)
    one.prepare(state)
    live = {"seen": [10]}
    for step in (10, 11):
        one.save(state, info=SaveInfo(step=step), objects=live)
        live["seen"][0] += 1
        for tensor in state.values():
            tensor.add_(1)
    outcome = one.wait()
    assert outcome is not None and outcome.step == 10 and one.poll() is not None and one.poll() is None
    for step in (10, 11):
        into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        found = one.at(step)
        assert found is not None and found.objects == {"seen": [step]}
        one.load(found, into)
        assert torch.equal(into["model/w"], tensors(step, size=500_000)["model/w"])


def test_a_save_waits_for_the_one_before_it_and_says_so(
    open_folder: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = open_folder(tmp_path)
    big = {"w": torch.zeros(10_000_000)}
    with caplog.at_level(logging.INFO, "moorage"):
        for step in range(1, 4):
            assert one.save(big, info=SaveInfo(step=step), objects={})
    assert "the save of step 1 is still under way: step 2 waits for it" in caplog.text
    assert [one.wait().step, one.wait().step, one.wait().step] == [1, 2, 3]  # type: ignore[union-attr]


def test_tensors_may_change_their_shapes_between_saves(open_folder: Open, tmp_path: Path) -> None:
    one = open_folder(tmp_path, 3)
    for step, state in enumerate(
        ({"a": torch.ones(2)}, {"a": torch.ones(3), "b": torch.ones(1)}, {"b": torch.ones(1).half()})
    ):
        one.save(state, info=SaveInfo(step=step), objects={})
        assert one.wait().committed  # type: ignore[union-attr]
        found = one.newest()
        assert found is not None and found.step == step
        assert {n: (f.shape, f.dtype) for n, f in one.stored(found).items()} == {
            n: (tuple(t.shape), t.dtype) for n, t in state.items()
        }


def test_odd_tensors_come_back(open_folder: Open, tmp_path: Path) -> None:
    one = open_folder(tmp_path)
    state = {
        "scalar": torch.tensor(3), "empty": torch.zeros(0, 5), "turned": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(100)[10:20], "spread": torch.ones(1, 3).expand(4, 3), "bool": torch.tensor([True, False]),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), "complex": torch.ones(2) * 1j,
        "grad": torch.ones(2, requires_grad=True), "fp8": torch.ones(4).to(torch.float8_e4m3fn),
    }  # fmt: skip
    one.save(state, info=SaveInfo(step=1), objects={})
    found = one.newest()
    assert found is not None
    into = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}
    one.load(found, into)
    assert all(
        torch.equal(into[name].float(), tensor.detach().float()) for name, tensor in state.items() if name != "complex"
    )
    assert torch.equal(into["complex"], state["complex"])
    assert found.size < 40_000, "the base of a view was saved with it"


def test_a_step_is_never_overwritten(open_folder: Open, tmp_path: Path) -> None:
    one = open_folder(tmp_path)
    save(one, 10)
    before = {path: path.read_bytes() for path in (tmp_path / step_name(10)).iterdir()}
    assert not one.save(tensors(99), info=SaveInfo(step=10), objects={})
    assert one.wait() is None
    assert {path: path.read_bytes() for path in (tmp_path / step_name(10)).iterdir()} == before


def test_state_that_json_has_no_form_for_is_an_error_at_once(open_folder: Open, tmp_path: Path) -> None:
    one = open_folder(tmp_path)
    for objects in ({"a": float("nan")}, {"a": {1, 2}}):
        with pytest.raises(CheckpointError, match="cannot be written as JSON"):
            one.save(tensors(1), info=SaveInfo(step=1), objects=objects)
    assert one.newest() is None


def test_the_best_stays(open_folder: Open, tmp_path: Path) -> None:
    one = open_folder(tmp_path, keep=1)
    save(one, 10, best=True)
    save(one, 20)
    save(one, 30)
    assert steps(tmp_path) == [10, 30]
    one.mark_best(30)
    save(one, 40)
    assert steps(tmp_path) == [30, 40]
    # On its way when it is marked.
    one.save(tensors(50), info=SaveInfo(step=50), objects={})
    one.mark_best(50)
    one.wait()
    save(one, 60)
    assert steps(tmp_path) == [50, 60]
    assert one.at(50) is not None and one.at(40) is None


# Damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(path.name).randrange(len(data))] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path, _: path.write_bytes(b""),
    "zeroed": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": lambda path, _: flip(path),
    "deleted": lambda path, _: path.unlink(),
    "longer": lambda path, _: path.write_bytes(path.read_bytes() + b"\0"),
    "swapped": lambda path, other: path.write_bytes(other.read_bytes()),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["shard", METADATA, MANIFEST])
def test_any_damage_is_noticed_and_the_one_before_used(
    open_folder: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, file: str
) -> None:
    save(open_folder(tmp_path), 10)
    save(open_folder(tmp_path), 20)

    def pick(step: int) -> Path:
        folder = tmp_path / step_name(step)
        return folder / file if file != "shard" else next(folder.glob("*.distcp"))

    DAMAGE[damage](pick(20), pick(10))
    again = open_folder(tmp_path)
    found = again.newest()
    assert found is not None and found.step == 10 and loads(again, found)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("step-00000020" in text for text in warned), warned
    assert steps(tmp_path) == [10]
    assert [path.name for path in tmp_path.glob("damaged*")] == (
        [] if (file, damage) == (MANIFEST, "deleted") else ["damaged-00000020-1"]
    )
    # The step comes again.
    save(again, 20)
    found = again.newest()
    assert found is not None and found.step == 20 and loads(again, found)
    assert not list(tmp_path.glob("damaged*"))


def test_damage_that_leaves_nothing_is_an_error_and_not_a_start_from_zero(open_folder: Open, tmp_path: Path) -> None:
    one = open_folder(tmp_path)
    save(one, 10)
    save(one, 20)
    flip(tmp_path / step_name(10) / METADATA)
    flip(tmp_path / step_name(20) / MANIFEST)
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* can be used") as raised:
        one.newest()
    assert "step-00000020: the manifest" in str(raised.value) and "step-00000010: .metadata: its content" in str(
        raised.value
    )
    assert steps(tmp_path) == [10, 20]


def test_a_save_that_never_ended_is_cleared_away(open_folder: Open, tmp_path: Path) -> None:
    one = open_folder(tmp_path)
    left = tmp_path / step_name(5)
    left.mkdir()
    (left / ("x.distcp" + IGNORE)).touch()
    assert one.newest() is None
    assert steps(tmp_path) == []
    save(one, 10)
    shutil.copytree(tmp_path / step_name(10), tmp_path / step_name(20))
    (tmp_path / step_name(20) / MANIFEST).unlink()
    (tmp_path / step_name(20) / (METADATA + UPLOADING)).touch()
    found = one.newest()
    assert found is not None and found.step == 10
    # Being uploaded, so not to be deleted; but it does not mix with what is saved there next.
    assert steps(tmp_path) == [10, 20]
    other = open_folder(tmp_path)
    save(other, 20)
    (tmp_path / step_name(20) / (METADATA + UPLOADING)).unlink()
    other.prune()
    found = other.newest()
    assert found is not None and found.step == 20 and loads(other, found)
    assert {path.name for path in (tmp_path / step_name(20)).iterdir()} == set(found.files) | {MANIFEST}


# A disk that is full, or refuses


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(open_folder: Open, small_disk: Path) -> None:
    one = open_folder(small_disk)
    save(one, 10)
    before = listing(small_disk)
    # Page by page less to write, so that it is full in the shard, then before the metadata, then within the manifest.
    failures = 0
    for rows in range(128_000, 100_000, -256):
        one.save(tensors(20, rows), info=SaveInfo(step=20), objects={"filler": "x" * 40_000})
        outcome = one.wait()
        assert outcome is not None
        if outcome.committed:
            break
        failures += 1
        assert "ENOSPC (No space left on device)" in outcome.error and str(small_disk) in outcome.error
        assert listing(small_disk) == before and steps(small_disk) == [10]
    assert failures > 5
    found = one.newest()
    assert found is not None and found.step == 20


def test_a_folder_that_cannot_be_written_is_an_error_naming_it(open_folder: Open, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"checkpoint folder .*file/below on algo-1 cannot be written.*ENOTDIR"):
        open_folder(tmp_path / "file" / "below")
