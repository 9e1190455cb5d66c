"""The Run on real ranks: every way to train gives the training it should, stops where it should, and goes on there."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

import moorage
from moorage.errors import CheckpointError, ConfigError
from moorage.training.run import Run
from moorage.training.stop import Stopped
from ranks.gloo import run_ranks
from support import JobFolder

Weights = dict[str, torch.Tensor]


class Task(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A linear rule with noise, to be learnt: 96 samples of 8 numbers, in 3 classes."""

    def __init__(self, num_samples: int = 96) -> None:
        generator = torch.Generator().manual_seed(1)
        rule = torch.randn(8, 3, generator=generator)
        self.x = torch.randn(num_samples, 8, generator=generator)
        self.y = (self.x @ rule).argmax(1)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        block = lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(dropout))  # noqa: E731
        self.first, self.blocks, self.last = nn.Linear(8, 16), nn.ModuleList([block(), block()]), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def join(rank: int, world_size: int, base: str, **settings: Any) -> Run:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "SAGEMAKER_BASE_DIR": base}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    return moorage.start(log_every=0, **settings)


def train(
    run: Run, *, epochs: int = 4, batch_size: int = 24, dropout: float = 0.0,
    at_step: Callable[[Run], None] | None = None, at_evaluation: Callable[[Run], None] | None = None,
) -> list[float]:  # fmt: skip
    """The loop of the README; the loss of each step on this rank."""
    loader = run.loader(Task(), batch_size)
    judged = run.loader(Task(30), 12, shuffle=False, drop_last=False)
    model = run.parallelize(Net(dropout))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    run.track(model=model, optimizer=optimizer)
    losses = []
    for _epoch in run.epochs(epochs):
        for x, y in run.batches(loader):
            loss = nn.functional.cross_entropy(model(x), y)
            run.backward(loss)
            run.step(loss=loss)
            losses.append(loss.item())
            if at_step:
                at_step(run)
        seen = right = 0
        for x, y in run.evaluating(judged):
            assert not model.training
            if at_evaluation:
                at_evaluation(run)
            right += int((model(x).argmax(1) == y).sum())
            seen += len(y)
        assert model.training
        assert run.sum(seen) == 30
        run.report(accuracy=run.sum(right) / 30)
    run.finish()
    return losses


def trained(rank: int, world_size: int, base: str, settings: dict[str, Any], options: dict[str, Any]) -> list[float]:
    return train(join(rank, world_size, base, **settings), **options)


def result(
    base: Path, world_size: int = 1, options: dict[str, Any] | None = None, **settings: Any
) -> tuple[Weights, list[float]]:
    """Final weights, and rank 0's losses."""
    JobFolder(base)
    losses = run_ranks(trained, world_size, world_size, str(base), settings, options or {})[0]
    return load_file(base / "model" / "model.safetensors"), losses


def close(one: Weights, other: Weights, tolerance: float = 1e-5) -> bool:
    return one.keys() == other.keys() and all(one[n].allclose(other[n], atol=tolerance, rtol=tolerance) for n in one)


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(one[n].equal(other[n]) for n in one)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """One rank, nothing special."""
    weights, losses = result(tmp_path_factory.mktemp("reference"))
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4]), "it does not learn"
    return weights


@pytest.mark.parametrize(
    ("world_size", "settings"),
    [
        (2, {"strategy": "ddp"}),
        (3, {"strategy": "ddp", "accumulation": 2}),
        (2, {"strategy": "fsdp"}),
        (2, {"strategy": "fsdp", "accumulation": 3, "activation_checkpointing": True}),
        (4, {"strategy": "hsdp", "shard_size": 2}),
        (1, {"accumulation": 4}),
    ],
    ids=lambda value: value if isinstance(value, int) else "-".join(map(str, value.values())),
)
def test_any_spread_trains_the_same_model(
    tmp_path: Path, reference: Weights, world_size: int, settings: dict[str, Any]
) -> None:
    """The batch is global: ranks, micro-batches and shards change only how it is computed."""
    weights, _ = result(tmp_path, world_size, **settings)
    assert close(weights, reference, 2e-4)


def test_shares_of_different_size_still_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    """A batch of 20 over 3 ranks is 7, 7 and 6 samples, and the last one of an epoch 16: 6, 5 and 5."""
    options = {"batch_size": 20}
    alone, _ = result(tmp_path / "alone", 1, options)
    three, _ = result(tmp_path / "three", 3, options, strategy="ddp")
    assert close(alone, three, 2e-4)


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"precision": "fp16"}, {"clip_norm": 0.5}], ids=str)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_precision_and_clipping_learn(
    tmp_path: Path, reference: Weights, strategy: str, settings: dict[str, Any]
) -> None:
    weights, losses = result(tmp_path, 2, strategy=strategy, **settings)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert not equal(weights, reference), "the setting did nothing"


def stopped_then_finished(
    rank: int, world_size: int, base: str, strategy: str, stop: tuple[str, int]
) -> tuple[int, int]:
    """Stop one rank only, then go on in the same process as a new run would. Steps at the stop, and at the resume."""
    import torch.distributed as dist

    where, at = stop

    def stop_here(run: Run) -> None:
        if run.rank == world_size - 1 and run.steps_done == at:
            os.kill(os.getpid(), signal.SIGTERM)

    run = join(rank, world_size, base, strategy=strategy)
    with pytest.raises(Stopped) as raised:
        train(run, dropout=0.3, **{where: stop_here})
    assert raised.value.code == 143
    stopped = run.steps_done
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{base}/again", rank=rank, world_size=world_size)
    run = join(rank, world_size, base, strategy=strategy)
    began: list[int] = []
    train(run, dropout=0.3, at_step=lambda run: began.append(run.steps_done))
    return stopped, began[0] - 1 if began else stopped


@pytest.mark.parametrize(
    ("world_size", "strategy", "where", "at"),
    [(1, "single", "at_step", 5), (3, "ddp", "at_step", 6), (2, "fsdp", "at_step", 3), (2, "ddp", "at_evaluation", 8)],
)
def test_a_stop_loses_no_step_and_changes_no_bit(
    tmp_path: Path, world_size: int, strategy: str, where: str, at: int
) -> None:
    whole, _ = result(tmp_path / "whole", world_size, {"dropout": 0.3}, strategy=strategy)
    base = tmp_path / "stopped"
    JobFolder(base)
    steps = run_ranks(stopped_then_finished, world_size, world_size, str(base), strategy, (where, at))
    assert len(set(steps)) == 1, "the ranks stopped at different steps"
    stopped, resumed = steps[0]
    assert stopped == resumed
    assert at <= stopped <= at + 2, "it is told at the step in hand, and honoured at the one after"
    assert equal(load_file(base / "model" / "model.safetensors"), whole)


def stopped_in_set_up(rank: int, base: str) -> int:
    run = join(rank, 1, base)
    with pytest.raises(Stopped) as raised:
        os.kill(os.getpid(), signal.SIGTERM)
        run.loader(Task(), 8)
    return int(str(raised.value.code))


def test_a_stop_during_set_up_is_honoured_at_once(tmp_path: Path) -> None:
    JobFolder(tmp_path)
    assert run_ranks(stopped_in_set_up, 1, str(tmp_path)) == [143]
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def best_and_patience(rank: int, base: str) -> tuple[int, Weights]:
    """Reports that get worse after the second epoch; the weights of every epoch are told apart by a counter."""
    run = join(rank, 2, base, best="max:accuracy", patience=3, keep=1, strategy="ddp")
    model = run.parallelize(nn.Linear(8, 3))
    run.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    loader = run.loader(Task(), 48)
    after: dict[int, Weights] = {}
    for epoch in run.epochs(20):
        for x, y in run.batches(loader):
            run.backward(nn.functional.cross_entropy(model(x), y))
            run.step()
        after[epoch] = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
        run.report(accuracy=[0.5, 0.9, 0.8, 0.7, 0.6, 0.5][epoch])
    run.finish()
    return run.epoch, after[1]


def test_the_best_report_names_the_weights_and_patience_ends_early(tmp_path: Path) -> None:
    JobFolder(tmp_path)
    epochs, best = run_ranks(best_and_patience, 2, str(tmp_path))[0]
    assert epochs == 5
    assert equal(load_file(tmp_path / "model" / "model.safetensors"), best)
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    assert facts["step"] == 4
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 2, "the newest and the best"


def trial(rank: int, base: str, strategy: str, stop_at: int, name: str) -> Weights:
    """Reports that get worse after the second; the weights of that one."""
    import torch.distributed as dist

    os.environ["TRAINING_JOB_NAME"] = name
    run = join(rank, 2, base, best="max:accuracy", keep=1, strategy=strategy)
    model = run.parallelize(nn.Linear(8, 3))
    run.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    loader = run.loader(Task(), 48)
    best: Weights = {}
    with pytest.raises(Stopped):
        for epoch in run.epochs(20):
            for x, y in run.batches(loader):
                run.backward(nn.functional.cross_entropy(model(x), y))
                if run.steps_done == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                run.step()
            if epoch == 1:
                state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
                best = {name: tensor.clone() for name, tensor in state.items()}
            run.report(accuracy=[0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3][epoch])
    dist.init_process_group("gloo", init_method=f"file://{base}/{name}", rank=rank, world_size=2)
    return best


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_trial_that_is_stopped_leaves_its_best_model_also_after_an_interruption(
    tmp_path: Path, strategy: str
) -> None:
    folder = JobFolder(tmp_path)
    folder.hyperparameters(_tuning_objective_metric="accuracy")
    best = run_ranks(trial, 2, str(tmp_path), strategy, 7, "tune-001-abc")[0]
    model = tmp_path / "model"
    assert equal(load_file(model / "model.safetensors"), best)
    assert json.loads((model / "model.json").read_text())["step"] == 4
    assert not list((tmp_path / "checkpoints").glob("step-*")), "trials may share that folder"
    assert list((tmp_path / "checkpoints" / "tune-001-abc").glob("step-*"))
    # The instances were taken away: another container, with nothing but the checkpoints.
    shutil.rmtree(model)
    run_ranks(trial, 2, str(tmp_path), strategy, 11, "tune-001-abc")
    assert equal(load_file(model / "model.safetensors"), best)


def test_what_no_tuning_job_runs_leaves_no_model_when_it_is_stopped(tmp_path: Path) -> None:
    JobFolder(tmp_path)
    run_ranks(trial, 2, str(tmp_path), "ddp", 7, "usual")
    assert list((tmp_path / "checkpoints").glob("step-*"))
    assert not (tmp_path / "model").exists()


class Stream(torch.utils.data.IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """A stream that knows its place."""

    def __init__(self, rank: int) -> None:
        self.rank, self.place = rank, 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        task = Task()
        while self.place < 48:
            index, self.place = self.place * 2 + self.rank, self.place + 1
            yield task.x[index], torch.tensor(index)
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def streamed(rank: int, base: str, stop_at: int, stop_after: bool = False) -> list[int]:
    run = join(rank, 2, base, strategy="ddp")
    model = run.parallelize(nn.Linear(8, 3))
    run.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    loader = run.loader(Stream(rank), 8)
    seen: list[int] = []
    try:
        for _epoch in run.epochs(1):
            for x, index in run.batches(loader):
                seen += index.tolist()
                run.backward(model(x).square().mean())
                if run.steps_done == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                run.step()
            if stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
                assert run.should_stop
                run.leave()
        run.finish()
    except Stopped:
        pass
    return seen


def test_a_stream_goes_on_at_its_place(tmp_path: Path) -> None:
    JobFolder(tmp_path)
    first = run_ranks(streamed, 2, str(tmp_path), 4)
    second = run_ranks(streamed, 2, str(tmp_path), -1)
    assert 0 < len(first[0]) < 48
    assert sorted(index for seen in first + second for index in seen) == list(range(96))


def test_a_stream_that_had_ended_is_not_drawn_again(tmp_path: Path) -> None:
    JobFolder(tmp_path)
    assert [len(seen) for seen in run_ranks(streamed, 2, str(tmp_path), -1, True)] == [48, 48]
    assert [len(seen) for seen in run_ranks(streamed, 2, str(tmp_path), -1)] == [0, 0]


def own_loop(rank: int, base: str) -> tuple[int, int]:
    """A loop of one's own: no run.batches, no run.step."""
    run = join(rank, 2, base, strategy="ddp")
    model = run.parallelize(nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.track(model=model, optimizer=optimizer)
    start = run.steps_done
    while run.steps_done < 10:
        model(Task().x[run.rank :: 2]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        run.advance()
        if start == 0 and run.steps_done == 6:
            run.save()
            run._saver.close()
            return start, run.steps_done
    run.finish()
    return start, run.steps_done


def test_a_loop_of_ones_own_saves_and_resumes(tmp_path: Path) -> None:
    JobFolder(tmp_path)
    assert run_ranks(own_loop, 2, str(tmp_path)) == [(0, 6)] * 2
    assert run_ranks(own_loop, 2, str(tmp_path)) == [(6, 10)] * 2


def passed_over(rank: int, base: str) -> list[int]:
    run = join(rank, 1, base)
    model = run.parallelize(nn.Linear(8, 3))
    run.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    samples = []
    loader = run.loader(Task(), 32, shuffle=False)
    for number, (x, _y) in enumerate(run.batches(loader)):
        if number != 1:
            run.backward(model(x).square().mean())
            run.step()
            samples.append(run._position.samples)
    with pytest.raises(ConfigError, match=r"run\.epochs"):
        next(run.batches(loader))
    return samples


def test_a_batch_the_program_passes_over_counts_as_consumed(tmp_path: Path) -> None:
    JobFolder(tmp_path)
    assert run_ranks(passed_over, 1, str(tmp_path)) == [[32, 96]]


def misuse(rank: int, base: str) -> list[str]:
    run = join(rank, 1, base)
    model = nn.Linear(8, 3)
    run.track(model=model)
    wrong: list[Callable[[], Any]] = [
        lambda: run.loader(Task(), 0),
        lambda: run.loader(Task(10), 32),
        lambda: run.loader([], 1),
        lambda: run.channel("validation"),
        lambda: run.channel("train"),
        lambda: run.track(model=model),
        lambda: run.track(rng=model),
        lambda: run.track(thing=object()),
        lambda: run.report(**{"bad name": 1.0}),
    ]
    said = []
    for act in wrong:
        with pytest.raises(ConfigError) as raised:
            act()
        said.append(str(raised.value))
    return said


def test_misuse_is_said_by_name(tmp_path: Path) -> None:
    JobFolder(tmp_path).write("inputdataconfig", {"train": {"TrainingInputMode": "File"}})
    (tmp_path / "input" / "data" / "train").mkdir(parents=True)
    said = run_ranks(misuse, 1, str(tmp_path))[0]
    expected = ["batch_size 0", "10 samples", "0 samples", "'validation'", "'train' is empty", "'model'", "'rng'",
                "thing=", "'bad name'"]  # fmt: skip
    assert len(said) == len(expected)
    for text, part in zip(said, expected, strict=True):
        assert part in text


def other_model(rank: int, base: str) -> str:
    run = join(rank, 1, base)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))
    with pytest.raises(CheckpointError) as raised:
        run.track(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    return str(raised.value)


def test_a_checkpoint_of_another_model_is_refused_with_names_and_shapes(tmp_path: Path) -> None:
    result(tmp_path)
    said = run_ranks(other_model, 1, str(tmp_path))[0]
    assert "model/0.weight" in said, "what the program has and the checkpoint lacks"
    assert "only in the checkpoint: model/" in said
    assert list((tmp_path / "checkpoints").glob("step-*/manifest.json")), "it was kept"


def switched(rank: int, base: str, precision: str) -> list[float]:
    return train(join(rank, 1, base, precision=precision), epochs={"fp32": 2, "fp16": 3, "bf16": 4}[precision])


def test_precision_may_change_between_starts(tmp_path: Path) -> None:
    """A checkpoint made without a gradient scale is taken up with one, and the other way round."""
    JobFolder(tmp_path)
    for precision in ("fp32", "fp16", "bf16"):
        assert len(run_ranks(switched, 1, str(tmp_path), precision)[0]) >= 4
