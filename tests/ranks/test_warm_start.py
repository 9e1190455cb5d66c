"""A new job that begins with what another one left: its weights, all of it, or a model folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import moorage
from moorage.checkpoint.layout import BEST, UPLOADED, step_name, steps
from moorage.errors import CheckpointError, ConfigError
from moorage.training.warm_start import load_weights
from ranks.gloo import run_ranks
from support import JobFolder

Weights = dict[str, torch.Tensor]


class Numbers(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """48 samples of 8 numbers, in 3 classes."""

    def __init__(self) -> None:
        self.x = torch.randn(48, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.x[index][:3].argmax()


class Net(nn.Module):
    """With a buffer, and a head that may be of another size."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def train(
    rank: int, world_size: int, base: str, settings: dict[str, Any], options: tuple[int, str, int]
) -> tuple[int, Weights]:
    """The step it began with, and the weights then. options: epochs, the name of the model, its classes."""
    epochs, name, classes = options
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "SAGEMAKER_BASE_DIR": base}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    run = moorage.start(log_every=0, best="max:score", **settings)
    loader = run.loader(Numbers(), 12)
    model = run.parallelize(Net(classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    run.track(**{name: model}, optimizer=optimizer, schedule=schedule)
    began = run.steps_done
    full = {
        key: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for key, value in model.state_dict().items()
    }
    for epoch in run.epochs(epochs):
        for x, y in run.batches(loader):
            run.backward(nn.functional.cross_entropy(model(x), y))
            run.step()
        run.report(score=-epoch)
    run.finish()
    return began, {key.removeprefix("module."): value for key, value in full.items()}


def job(base: Path, world_size: int = 2, *, epochs: int = 2, **settings: Any) -> tuple[int, Weights]:
    if not (base / "input").exists():
        JobFolder(base)
    return run_ranks(train, world_size, world_size, str(base), settings, (epochs, "model", 3))[0]


def refused(base: Path, *, name: str = "model", classes: int = 3, **settings: Any) -> tuple[str, str]:
    """The error of every rank, alike: its class and its words."""
    if not (base / "input").exists():
        JobFolder(base)
    errors = run_ranks(refuses, 2, str(base), settings, (1, name, classes))
    assert errors[0] == errors[1]
    return errors[0]


def refuses(rank: int, base: str, settings: dict[str, Any], options: tuple[int, str, int]) -> tuple[str, str]:
    with pytest.raises((CheckpointError, ConfigError)) as raised:
        train(rank, 2, base, {"strategy": "ddp", **settings}, options)
    return type(raised.value).__name__, str(raised.value)


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of two epochs, the first of which was the better; its last checkpoint is step 8."""
    base = tmp_path_factory.mktemp("donor")
    job(base, strategy="ddp")
    assert steps(base / "checkpoints") == [4, 8]
    return base


def last_weights(base: Path, step: int = 8) -> Weights:
    """As the job would go on with them."""
    copy = base.parent / f"{base.name}-copy-{step}"
    if not copy.exists():
        JobFolder(copy)
        shutil.copytree(base / "checkpoints" / step_name(step), copy / "checkpoints" / step_name(step))
        (copy / "checkpoints" / step_name(step) / BEST).unlink(missing_ok=True)
    return job(copy, 1, epochs=1)[1]


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(("world_size", "strategy"), [(2, "ddp"), (2, "fsdp"), (1, "single")])
def test_the_weights_of_another_job_and_nothing_else(
    tmp_path: Path, donor: Path, world_size: int, strategy: str
) -> None:
    settings = {"warm_start": str(donor / "checkpoints"), "strategy": strategy}
    began, weights = job(tmp_path, world_size, **settings)
    assert began == 0
    assert equal(weights, last_weights(donor))
    assert max(steps(tmp_path / "checkpoints")) == 8, "two epochs from the first step on"


def test_all_of_another_job_goes_on_as_that_one_would(tmp_path: Path, donor: Path) -> None:
    job(tmp_path / "whole", epochs=4, strategy="ddp")
    settings = {"warm_start": str(donor / "checkpoints"), "warm_start_what": "all", "strategy": "ddp"}
    began, weights = job(tmp_path / "warm", epochs=4, **settings)
    assert began == 8 and equal(weights, last_weights(donor))
    whole, warm = (last_weights(tmp_path / name, 16) for name in ("whole", "warm"))
    assert equal(whole, warm)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_model_folder(tmp_path: Path, donor: Path, strategy: str) -> None:
    began, weights = job(tmp_path, strategy=strategy, warm_start=str(donor / "model"))
    assert began == 0
    assert equal(weights, load_file(donor / "model" / "model.safetensors"))


def test_a_step_in_a_channel(tmp_path: Path, donor: Path) -> None:
    folder = JobFolder(tmp_path)
    folder.write("inputdataconfig", {"pretrained": {}})
    shutil.copytree(donor / "checkpoints", tmp_path / "input" / "data" / "pretrained")
    began, weights = job(tmp_path, 1, warm_start="pretrained/step-00000004")
    assert began == 0
    assert equal(weights, last_weights(donor, 4))


def test_a_job_with_a_checkpoint_of_its_own_goes_on_from_that(tmp_path: Path, donor: Path) -> None:
    job(tmp_path, 1, epochs=1)
    mine = last_weights(tmp_path, 4)
    began, weights = job(tmp_path, 1, epochs=2, warm_start=str(donor / "checkpoints"), warm_start_what="all")
    assert began == 4
    assert equal(weights, mine)


def test_a_damaged_one_is_passed_over_and_left_as_it_is(tmp_path: Path, donor: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(donor / "checkpoints", source)
    shard = next((source / step_name(8)).glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (source / step_name(4) / ("manifest.json" + UPLOADED)).touch()
    shutil.copytree(source / step_name(4), source / step_name(12))
    (source / step_name(12) / "manifest.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    began, weights = job(tmp_path / "job", strategy="ddp", warm_start=str(source))
    assert began == 0
    assert equal(weights, last_weights(donor, 4))
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before


def test_what_does_not_fit_is_listed(tmp_path: Path, donor: Path) -> None:
    for folder in ("checkpoints", "model"):
        kind, text = refused(tmp_path / folder, warm_start=str(donor / folder), classes=5)
        assert kind == "CheckpointError" and "does not fit the program" in text
        assert "head.weight is [5, 16], in the" in text and "head.bias is [5], in the" in text
    kind, text = refused(tmp_path / "name", warm_start=str(donor / "checkpoints"), name="net")
    assert "not in the checkpoint: net (module)" in text


def test_a_folder_that_cannot_be_begun_with_says_what_it_holds(tmp_path: Path, donor: Path) -> None:
    base, other = tmp_path / "job", tmp_path / "other"
    other.mkdir()
    assert "holds neither checkpoints nor model.safetensors" in refused(base, warm_start=str(other))[1]
    (other / "model.tar.gz").touch()
    assert "unpack model.tar.gz" in refused(base, warm_start=str(other))[1]
    assert "cannot be read" in refused(base, warm_start=str(tmp_path / "nowhere"))[1]
    assert refused(base, warm_start="pretrained") == (
        "ConfigError",
        "warm_start 'pretrained' is neither an absolute path nor in a channel. the job's channels are: none. "
        "give a path such as /opt/ml/input/data/CHANNEL, or the name of a channel of InputDataConfig.",
    )
    kind, text = refused(base, warm_start=str(donor / "model"), warm_start_what="all")
    assert kind == "ConfigError" and "has weights only" in text
    shutil.copytree(donor / "checkpoints" / step_name(8), other / step_name(8))
    next((other / step_name(8)).glob("*.distcp")).unlink()
    assert "can be used" in (text := refused(base, warm_start=str(other / step_name(8)))[1])
    assert "missing" in text
    assert not steps(base / "checkpoints")


class Tied(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4, dtype=dtype), nn.Linear(4, 5, bias=False, dtype=dtype)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("names", [("embedding.weight",), ("head.weight",), ("embedding.weight", "head.weight")])
def test_shared_weights_under_either_name_and_of_another_width(tmp_path: Path, names: tuple[str, ...]) -> None:
    weights = torch.randn(5, 4).bfloat16()
    save_file({name: weights.clone() for name in names}, tmp_path / "model.safetensors")
    model = Tied()
    load_weights(tmp_path / "model.safetensors", model)
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.equal(weights.float())


def test_nothing_is_changed_by_a_file_that_does_not_fit(tmp_path: Path) -> None:
    model = Tied()
    before = model.head.weight.clone()
    save_file({"embedding.weight": torch.zeros(5, 4), "more": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 only in the file: more"):
        load_weights(tmp_path / "model.safetensors", model)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(tmp_path / "model.safetensors", model)
    save_file({"embedding.weight": torch.zeros(5, 4, dtype=torch.int64)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="in the file I64"):
        load_weights(tmp_path / "model.safetensors", model)
    assert model.head.weight.equal(before)
