"""Checkpoints of several ranks: any world size and strategy, hosts with their own folders, ranks and disks failing."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from moorage.checkpoint.checkpointer import Checkpointer, Outcome, SaveInfo
from moorage.checkpoint.durable import CHUNK, FileFacts
from moorage.checkpoint.durable import digest as digest_of
from moorage.checkpoint.group import Group
from moorage.checkpoint.layout import MANIFEST, METADATA, step_name, steps
from moorage.checkpoint.manifest import read_manifest
from moorage.checkpoint.plan import PIECE, Tensors
from moorage.checkpoint.source import Folder
from moorage.checkpoint.state import capture, restore, template
from moorage.checkpoint.storage import Disk, write_bytes
from moorage.checkpoint.transfer import receive_file, send_file
from moorage.errors import CheckpointError
from ranks.gloo import RankFailed, run_ranks


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def log_to_list() -> tuple[logging.Logger, list[str]]:
    log, messages = logging.getLogger("of-ranks"), Messages()
    log.handlers, log.propagate = [messages], False
    log.setLevel(logging.INFO)
    return log, messages.texts


def one_host(folder: Path, rank: int, keep: int = 9) -> Checkpointer:
    return Checkpointer(folder, rank=rank, world_size=dist.get_world_size(), local_rank=rank, host="algo-1", keep=keep)


def own_host(folder: Path, rank: int, log: logging.Logger | None = None) -> Checkpointer:
    """Each rank on a host with a folder of its own."""
    return Checkpointer(
        folder / f"host-{rank}",
        rank=rank,
        world_size=dist.get_world_size(),
        local_rank=0,
        host=f"algo-{rank}",
        keep=9,
        log=log,
    )


def own_tensors(step: int, rank: int, world_size: int) -> Tensors:
    """Something replicated, and something of each rank."""
    alike = {f"layer-{index}": torch.full((64, 64), float(step + index)) for index in range(4)}
    return Tensors({**alike, f"rng/{rank}": torch.tensor([step, rank])}, replicated=frozenset(alike))


def save(one: Checkpointer, rank: int, step: int) -> Outcome:
    assert one.save(
        own_tensors(step, rank, dist.get_world_size()), info=SaveInfo(step=step), objects={}, per_rank={"rank": rank}
    )
    outcome = one.wait()
    assert outcome is not None
    return outcome


def newest_loads(one: Checkpointer, rank: int) -> int | None:
    """The step of the newest checkpoint, after a look at all in it, and at what was loaded while it was verified."""

    def zeros() -> dict[str, Tensor]:
        return {name: torch.zeros_like(tensor) for name, tensor in own_tensors(0, rank, dist.get_world_size()).items()}

    manifest = one.newest(lambda *_: zeros())
    if manifest is None:
        return None
    expected = own_tensors(manifest.step, rank, dist.get_world_size())
    ahead, into = one.ahead(manifest), zeros()
    one.load(manifest, into)
    for found in (into, *([ahead] if ahead is not None else [])):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return manifest.step


# World sizes and strategies


class Net(nn.Module):
    """Odd sizes, so that shards are uneven and some ranks have none of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.last = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


def spread(strategy: str) -> nn.Module:
    net = Net()
    if strategy == "ddp":
        return DistributedDataParallel(net)
    if strategy in ("fsdp", "hsdp"):
        world_size = dist.get_world_size()
        shape = (world_size,) if strategy == "fsdp" else (world_size // 2, 2)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
        fully_shard(net.first, mesh=mesh)
        fully_shard(net, mesh=mesh)
    return net


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of the whole values, however they are spread."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        found.update(f"{name} {whole.shape} {whole.dtype}".encode() + whole.detach().numpy().tobytes())
    return found.hexdigest()


def go_on(rank: int, folder: Path, strategy: str, number: int) -> tuple[str, str]:
    """Resume what is there, train two steps, save. The state as it was loaded, and as it was saved."""
    torch.manual_seed(100 + number)
    model = spread(strategy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    tracked = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    one = one_host(folder, rank)
    manifest = one.newest()
    loaded = ""
    if manifest is not None:
        targets = template(tracked, one.stored(manifest), manifest.objects)
        one.load(manifest, targets)
        restore(tracked, targets, manifest.objects)
        loaded = digest(capture(tracked)[0])
        assert scheduler.last_epoch == 2 * number and optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0]
    for step in range(2):
        torch.manual_seed(10 * step)
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    tensors, objects = capture(tracked)
    one.save(tensors, info=SaveInfo(step=number + 1, strategy=strategy), objects=objects)
    saved = digest(tensors)
    outcome = one.wait()
    assert outcome is not None and outcome.committed, outcome
    one.close()
    return loaded, saved


def test_a_checkpoint_fits_any_world_size_and_strategy(tmp_path: Path) -> None:
    before = ""
    route = [("ddp", 2), ("single", 1), ("fsdp", 3), ("hsdp", 4), ("ddp", 2), ("fsdp", 2)]
    for number, (strategy, world_size) in enumerate(route):
        results = run_ranks(go_on, world_size, tmp_path, strategy, number)
        loaded, saved = results[0]
        assert loaded == before, f"{strategy} on {world_size} ranks loaded other values than were saved"
        assert all(result == results[0] for result in results)
        before = saved
    manifest, _ = read_manifest(Folder(tmp_path / step_name(3)))
    assert (manifest.world_size, manifest.strategy) == (3, "fsdp")


def uneven_state(rank: int, folder: Path) -> str:
    model = spread("fsdp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = next(model.parameters())
    optimizer.state[weight]["rows"] = torch.zeros(weight.to_local().shape[0], 1)  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError) as raised:
        capture({"model": model, "optimizer": optimizer})
    return str(raised.value)


def test_state_of_a_sharded_parameter_that_is_not_sharded_itself_is_an_error(tmp_path: Path) -> None:
    for text in run_ranks(uneven_state, 2, tmp_path):
        assert "optimizer/model/first.weight/rows is a plain tensor" in text and "its parameter is sharded" in text


# Who writes what


def ddp_buffers(rank: int, folder: Path) -> tuple[float, int]:
    model = DistributedDataParallel(Net())
    model(torch.full((4, 5), float(rank)) + torch.arange(4.0)[:, None])
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model.module.norm.running_mean.fill_(rank + 1)
    tensors, objects = capture({"model": model, "optimizer": optimizer})
    # More than twice a piece, so it is cut by rows.
    tensors["large"] = torch.arange(3 * PIECE // 4, dtype=torch.float32).reshape(-1, 64)
    tensors.replicated |= {"large"}
    one = one_host(folder, rank)
    one.save(tensors, info=SaveInfo(step=1), objects=objects)
    manifest = one.newest()
    assert manifest is not None
    into = {"model/norm.running_mean": torch.zeros(7), "large": torch.zeros_like(tensors["large"])}
    one.load(manifest, into)
    assert torch.equal(into["large"], tensors["large"])
    sizes = sorted(entry.size for name, entry in manifest.files.items() if name != METADATA)
    assert len(sizes) == 2
    return into["model/norm.running_mean"].mean().item(), sizes[1] - sizes[0]


def test_ddp_spreads_the_writing_and_buffers_are_the_first_rank_s(tmp_path: Path) -> None:
    for mean, difference in run_ranks(ddp_buffers, 2, tmp_path):
        assert mean == 1.0
        assert difference <= PIECE


def different_steps(rank: int, folder: Path) -> tuple[str, str]:
    one = one_host(folder, rank)
    with pytest.raises(CheckpointError) as steps_differ:
        one.save(own_tensors(1, rank, 2), info=SaveInfo(step=1 + rank), objects={})
    with pytest.raises(CheckpointError) as shapes_differ:
        one.save(
            Tensors({"w": torch.ones(1 + rank, 40 << 18)}, replicated=frozenset({"w"})),
            info=SaveInfo(step=1),
            objects={},
        )
    assert save(one, rank, 3).committed and newest_loads(one, rank) == 3
    # A rank may have nothing to write.
    one.save({"w": torch.ones(3)} if rank == 1 else {}, info=SaveInfo(step=4), objects={})
    manifest, into = one.newest(), {"w": torch.zeros(3)}
    assert manifest is not None and manifest.step == 4 and len(manifest.files) == 2
    one.load(manifest, into if rank == 0 else {})
    assert rank == 1 or torch.equal(into["w"], torch.ones(3))
    return str(steps_differ.value), str(shapes_differ.value)


def test_ranks_that_disagree_all_get_the_error(tmp_path: Path) -> None:
    for steps_differ, shapes_differ in run_ranks(different_steps, 2, tmp_path):
        assert "the ranks save different steps: 1 and 2" in steps_differ
        assert "do not make one checkpoint" in shapes_differ and "'w'" in shapes_differ


# Hosts with folders of their own


def save_steps(rank: int, folder: Path, wanted: list[int]) -> list[str]:
    one = own_host(folder, rank)
    return [save(one, rank, step).error for step in wanted]


def resume(rank: int, folder: Path) -> tuple[int | str | None, list[str]]:
    log, texts = log_to_list()
    try:
        return newest_loads(own_host(folder, rank, log), rank), texts
    except CheckpointError as error:
        return str(error), texts


def resumed_step(folder: Path, world_size: int = 2) -> int | str | None:
    results = run_ranks(resume, world_size, folder)
    assert len({step for step, _ in results}) == 1, results
    step: int | str | None = results[0][0]
    return step


def files(folder: Path, host: int, step: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / f"host-{host}" / step_name(step)).iterdir()}


@pytest.fixture
def two_hosts(tmp_path: Path) -> Path:
    assert run_ranks(save_steps, 2, tmp_path, [10, 20]) == [["", ""], ["", ""]]
    return tmp_path


def test_each_host_has_its_own_shards_and_the_same_manifest(two_hosts: Path) -> None:
    first, second = (files(two_hosts, host, 20) for host in (0, 1))
    assert set(first) & set(second) == {METADATA, MANIFEST}
    assert first[METADATA] == second[METADATA] and first[MANIFEST] == second[MANIFEST]
    manifest, _ = read_manifest(Folder(two_hosts / "host-0" / step_name(20)))
    assert manifest.hosts == ("algo-0", "algo-1") and manifest.per_rank == ({"rank": 0}, {"rank": 1})
    assert sorted(entry.host for entry in manifest.files.values()) == ["algo-0", "algo-0", "algo-1"]
    # What each lacks comes from the other; then either can lose everything.
    assert resumed_step(two_hosts) == 20
    assert files(two_hosts, 0, 20) == files(two_hosts, 1, 20) == first | second
    shutil.rmtree(two_hosts / "host-1")
    assert resumed_step(two_hosts) == 20
    assert files(two_hosts, 1, 20) == first | second
    for host, name in (
        (0, next(name for name in first if name.endswith("00000.distcp"))),
        (1, METADATA),
        (0, MANIFEST),
    ):
        path = two_hosts / f"host-{host}" / step_name(20) / name
        path.write_bytes(path.read_bytes()[:-7] + b"changed")
    assert resumed_step(two_hosts) == 20
    assert files(two_hosts, 0, 20) == files(two_hosts, 1, 20) == first | second


def test_what_was_loaded_before_it_was_found_damaged_is_not_used(two_hosts: Path) -> None:
    assert resumed_step(two_hosts) == 20
    value = torch.full((64, 64), 21.0).numpy().tobytes()
    for host in (0, 1):
        for path in (two_hosts / f"host-{host}" / step_name(20)).glob("*.distcp"):
            data = path.read_bytes()
            if value in data:  # numbers like any others: only the hash tells
                path.write_bytes(data.replace(value, torch.full((64, 64), -5.0).numpy().tobytes()))
                break
        else:
            raise AssertionError("layer-1 is in none of the files")
        assert resumed_step(two_hosts) == 20, "the other host has it still"


def test_what_no_host_has_makes_all_fall_back_alike(two_hosts: Path) -> None:
    assert resumed_step(two_hosts) == 20
    assert run_ranks(save_steps, 2, two_hosts, [30, 40]) == [["", ""], ["", ""]]
    shutil.rmtree(two_hosts / "host-1")
    results = run_ranks(resume, 2, two_hosts)
    assert [step for step, _ in results] == [20, 20]
    refused = [text for text in results[0][1] if "cannot be used" in text]
    assert (
        "step-00000040" in refused[0]
        and "missing on algo-1" not in refused[0]
        and "00001.distcp: missing" in refused[0]
    )
    for host in (0, 1):
        assert steps(two_hosts / f"host-{host}")[-1] == 20
    assert run_ranks(save_steps, 2, two_hosts, [30, 40]) == [["", ""], ["", ""]]
    assert resumed_step(two_hosts) == 40


def test_a_third_host_and_a_lonely_one_go_on(two_hosts: Path) -> None:
    (two_hosts / "host-0" / step_name(20) / MANIFEST).unlink()
    assert run_ranks(resume_part, 3, two_hosts) == [20, 20, 20]
    shutil.rmtree(two_hosts / "host-1")
    shutil.rmtree(two_hosts / "host-2")
    assert run_ranks(resume_part, 1, two_hosts) == [20]


def resume_part(rank: int, folder: Path) -> int | None:
    manifest = own_host(folder, rank).newest()
    return None if manifest is None else manifest.step


def test_no_host_has_a_whole_one(two_hosts: Path) -> None:
    for host in (0, 1):
        (two_hosts / f"host-{host}" / step_name(10) / METADATA).unlink()
        (two_hosts / f"host-{host}" / step_name(20) / METADATA).write_bytes(b"")
    for text, _ in run_ranks(resume, 2, two_hosts):
        assert "none of the 2 checkpoints" in str(text) and ".metadata: missing on all hosts" in str(text)


def shared_disk(rank: int, folder: Path) -> list[Path]:
    one = Checkpointer(folder, rank=rank, world_size=2, local_rank=0, host=f"algo-{rank}", keep=1)
    for step in (1, 2, 3):
        assert save(one, rank, step).committed
    assert newest_loads(one, rank) == 3
    return sorted(folder.iterdir())


def test_hosts_that_share_a_disk_do_not_get_into_each_other_s_way(tmp_path: Path) -> None:
    assert run_ranks(shared_disk, 2, tmp_path) == [[tmp_path / step_name(3)]] * 2


# Beside the training


def train_beside(rank: int, folder: Path) -> list[str]:
    one = one_host(folder, rank)
    errors = []
    for step in (1, 2):
        big = Tensors({"w": torch.full((4_000_000,), float(step))}, replicated=frozenset({"w"}))
        assert one.save(big, info=SaveInfo(step=step), objects={})
        for number in range(300):
            value = torch.tensor([float(rank + number)])
            dist.all_reduce(value)
            assert value.item() == 2 * number + 1
        outcome = one.wait()
        assert outcome is not None
        errors.append(outcome.error)
    return errors


def test_a_save_and_the_collectives_of_training_do_not_meet(tmp_path: Path) -> None:
    assert run_ranks(train_beside, 2, tmp_path) == [["", ""], ["", ""]]


# Failures


def send_and_receive(rank: int, folder: Path) -> list[str]:
    """Rank 0 sends to the others what is not as it was promised, and what is."""
    group = Group(rank, 3, timedelta(seconds=30))
    told = []
    size = CHUNK + 1000
    good = b"y" * size
    promised = FileFacts(size=size, xxh3_128=digest_of(good))
    sent = {"changed": b"x" * size, "short": b"y", "long": good + b"y", "gone": None, "good": good}
    storage = Disk(folder / f"host-{rank}")
    storage.prepare()
    for name, content in sent.items():
        if rank == 0:
            if content is not None:
                write_bytes(storage, 7, name, content)
            told.append(send_file(storage.checkpoint(7), name, promised, (1, 2), group))
        else:
            told.append(receive_file(storage.writing(7, name), name, promised, 0, group))
    assert rank == 0 or sorted(storage.names(7)) == ["good", "long"]
    return told


def test_a_file_that_changes_while_it_is_sent_is_noticed(tmp_path: Path) -> None:
    sender, *receivers = run_ranks(send_and_receive, 3, tmp_path)
    short = "short: ENODATA (the file ends 8388607 bytes too early)"
    assert sender == ["", short, "", "gone: ENOENT (No such file or directory)", ""]
    fetched = "changed while it was fetched"
    assert receivers == [[f"changed: {fetched}", f"short: {fetched}", "", f"gone: {fetched}", ""]] * 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "host-1"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill_up(rank: int, folder: Path) -> str:
    one = own_host(folder, rank)
    assert save(one, rank, 1).committed
    filler = folder / "host-1" / "filler"
    if rank == 1:
        filler.write_bytes(bytes((1 << 20) - 30_000 - sum(p.stat().st_size for p in filler.parent.rglob("*"))))
    failed = save(one, rank, 2)
    assert not failed.committed and not (folder / f"host-{rank}" / step_name(2)).exists()
    with pytest.raises(CheckpointError, match=r"is whole among the hosts.* on algo-1: .*ENOSPC"):
        one.newest()
    assert steps(folder / f"host-{rank}") == [1]
    if rank == 1:
        filler.unlink()
    assert save(one, rank, 3).committed and newest_loads(one, rank) == 3
    return failed.error


@pytest.mark.usefixtures("small_disk")
def test_one_full_disk_undoes_the_save_on_all_hosts(tmp_path: Path) -> None:
    first, second = run_ranks(fill_up, 2, tmp_path)
    assert first == second == f"ENOSPC (No space left on device) in {tmp_path / 'host-1'} on algo-1 (rank 1)"


FAILING = """
import sys, torch
from pathlib import Path
from moorage.checkpoint.checkpointer import Checkpointer, SaveInfo

one = Checkpointer(Path(sys.argv[1]), rank=0, world_size=1, local_rank=0, host="algo-1")
one.save({f"w{i}": torch.full((500_000,), float(i)) for i in range(30)}, info=SaveInfo(step=7), objects={})
raise SystemExit(3)
"""


def test_a_program_that_fails_during_a_save_keeps_the_save_and_its_exit_code(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAILING, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 3, ended.stderr
    assert read_manifest(Folder(tmp_path / step_name(7)))[0].step == 7


def die_while_saving(rank: int, folder: Path, stage: str) -> None:
    one = own_host(folder, rank)
    for step in range(1, 10):
        seen = folder / "host-1" / step_name(step)
        if rank == 1 and step == 3:
            sys.addaudithook(functools.partial(_kill_when, seen, stage))
        size = 2_000_000 if step == 3 else 1000
        tensors = Tensors({"w": torch.full((size,), float(step)), f"own/{rank}": torch.full((size,), float(rank))})
        one.save(tensors, info=SaveInfo(step=step), objects={"filler": "x" * 3_000_000})
        one.wait()
        dist.barrier()


def _kill_when(folder: Path, stage: str, event: str, _arguments: object) -> None:
    """When a file is about to be opened or renamed, and one of this stage is there already."""
    files = folder.iterdir() if event in ("open", "os.rename") and folder.exists() else ()
    if any(path.name.endswith(stage) for path in files):
        os.kill(os.getpid(), signal.SIGKILL)


def after_death(rank: int, folder: Path) -> int:
    one = own_host(folder, rank)
    manifest = one.newest()
    assert manifest is not None
    into = {"w": torch.zeros(one.stored(manifest)["w"].shape)}
    one.load(manifest, into)
    assert bool((into["w"] == manifest.step).all())
    assert steps(folder / f"host-{rank}")[-1] == manifest.step
    return manifest.step


STAGES = [
    ".distcp.sagemaker-ignore",
    ".distcp",
    METADATA + ".sagemaker-ignore",
    METADATA,
    MANIFEST + ".sagemaker-ignore",
]


@pytest.mark.full(10, short=1)
@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_killed_in_the_middle_of_a_save_leaves_the_one_before(
    tmp_path: Path, stage: str, chaos_count: int
) -> None:
    for number in range(chaos_count):
        folder = tmp_path / str(number)
        with pytest.raises(RankFailed):
            run_ranks(die_while_saving, 2, folder, stage)
        left = [{path.name for path in (folder / f"host-{host}" / step_name(3)).iterdir()} for host in (0, 1)]
        assert not any(MANIFEST in names for names in left) or all(METADATA in names for names in left)
        chosen = run_ranks(after_death, 2, folder)
        # Once every file is on a disk, it is the manifest of any host that counts.
        assert chosen in ([2, 2], [3, 3]) and (chosen == [2, 2] or stage != STAGES[0])
