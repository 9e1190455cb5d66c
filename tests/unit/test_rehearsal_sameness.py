"""What a proof of resume says of two runs: of their losses, of their weights, and of what usually is behind it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from moorage.rehearsal.report_attempts import AttemptRow
from moorage.rehearsal.sameness import Departure, Same, compare_ends, compare_losses, losses_of
from moorage.rehearsal.traces import Point, Traces
from moorage.rehearsal.verdict import causes
from moorage.rehearsal.weights import Weights, compare_weights

WHOLE = [f"{1 / step:.6g}" for step in range(1, 11)]


def trace(texts: list[str], *, first: int = 1, attempt: int = 1) -> list[Point]:
    return [Point(attempt, first + index, text) for index, text in enumerate(texts)]


def traces(*parts: list[Point]) -> Traces:
    return {"train_loss": [point for part in parts for point in part]}


# Losses


def test_what_was_done_again_the_same_is_bit_exact() -> None:
    broken = traces(trace(WHOLE[:6]), trace(WHOLE[4:], first=5, attempt=2))
    found = compare_losses(traces(trace(WHOLE)), broken, ["train_loss"])
    assert (found.same, found.values, found.first, found.missing) == (Same.EXACT, 12, None, ())


def test_the_last_digit_of_six_may_be_rounded_the_other_way() -> None:
    broken = traces(trace(WHOLE[:6]), trace(["0.142858", *WHOLE[7:]], first=7, attempt=2))
    assert compare_losses(traces(trace(WHOLE)), broken, ["train_loss"]).same is Same.NEAR


def test_the_first_value_that_is_another_also_where_it_was_done_again_rightly() -> None:
    broken = traces(
        trace(WHOLE[:6]), trace(["0.21", *WHOLE[5:8]], first=5, attempt=2), trace(WHOLE[4:], first=5, attempt=3)
    )
    found = compare_losses(traces(trace(WHOLE)), broken, ["train_loss"])
    assert found.same is Same.APART
    assert found.first == Departure(metric="train_loss", step=5, attempt=2, expected="0.2", found="0.21")


def test_of_several_metrics_the_one_that_parts_first_is_named() -> None:
    whole = {"a_loss": trace(WHOLE), "b_loss": trace(WHOLE)}
    broken = {"a_loss": trace([*WHOLE[:8], "9", "9"]), "b_loss": trace([*WHOLE[:3], "9", *WHOLE[4:]])}
    found = compare_losses(whole, broken, losses_of(whole))
    assert found.first is not None and (found.first.metric, found.first.step) == ("b_loss", 4)


def test_not_a_number_is_the_same_as_itself_and_as_nothing_else() -> None:
    def alike(one: str, other: str) -> Same | None:
        return compare_losses(traces(trace([one])), traces(trace([other])), ["train_loss"]).same

    assert alike("nan", "nan") is Same.EXACT
    assert alike("nan", "0.5") is Same.APART
    assert alike("inf", "-inf") is Same.APART


def test_values_without_steps_are_compared_at_the_end() -> None:
    def points(*texts: str) -> Traces:
        return {"loss": [Point(1, None, text) for text in texts]}

    assert compare_losses(points("3", "2", "1"), points("3", "2", "2", "1"), ["loss"]).same is Same.EXACT
    assert compare_losses(points("3", "1"), points("3", "2"), ["loss"]).first == Departure(
        metric="loss", step=None, attempt=1, expected="1", found="2"
    )


def test_steps_that_one_run_did_not_write_are_said() -> None:
    found = compare_losses(traces(trace(WHOLE)), traces(trace(WHOLE[:7])), ["train_loss"])
    assert (found.same, found.missing) == (Same.EXACT, (8, 9, 10))
    assert compare_losses({}, {}, []).same is None


def test_losses_are_compared_and_else_all_but_the_epoch() -> None:
    given: Traces = {"epoch": [], "train_loss": [], "speed": [], "val_Loss": []}
    assert losses_of(given) == ("train_loss", "val_Loss")
    assert losses_of({"epoch": [], "speed": []}) == ("speed",)
    assert losses_of(given, ["speed", "absent"]) == ("speed",)


def test_on_other_world_sizes_losses_end_close_and_no_step_is_missing() -> None:
    whole = traces(trace([str(100 - step) for step in range(100)]))
    shifted = traces(trace([str(100 - step + 5) for step in range(100)]))
    (end,) = compare_ends(whole, shifted, ["train_loss"])
    assert end.close and end.expected == 5.5 and end.apart == pytest.approx(5 / 99)
    (far,) = compare_ends(whole, traces(trace([str(100 - step + 20) for step in range(100)])), ["train_loss"])
    assert not far.close
    (short,) = compare_ends(whole, traces(trace([str(100 - step) for step in range(99)])), ["train_loss"])
    assert short.missing == (100,) and not short.close


# Weights


def archive(folder: Path, files: Mapping[str, bytes]) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def torch_file(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def numpy_file(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


ONES = torch.ones(3, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "npz"])
def test_weights_of_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    def compare(one: torch.Tensor, other: torch.Tensor) -> Weights:
        made = []
        for tensor in (one, other):
            data = {
                "safetensors": lambda tensor=tensor: save({"layer": tensor}),
                "pt": lambda tensor=tensor: torch_file({"state": {"layer": tensor}, "step": 3}),
                "npz": lambda tensor=tensor: numpy_file(layer=tensor.numpy()),
            }[kind]()
            made.append(archive(tmp_path, {f"deep/model.{kind}": data, "log.txt": str(id(data)).encode()}))
        return compare_weights(*made)

    same = compare(ONES, ONES.clone())
    assert (same.same, same.differences, same.files) == (Same.EXACT, (), (f"deep/model.{kind}",))
    assert same.others == ("log.txt",), "which holds no weights"
    near = compare(ONES, ONES + 5e-7)
    assert near.same is Same.NEAR
    apart = compare(ONES, ONES * 2)
    assert apart.same is Same.APART
    assert "layer" in apart.differences[0].name and apart.differences[0].distance == 1.0


def test_bits_count_where_numbers_would_not_tell(tmp_path: Path) -> None:
    def compare(one: torch.Tensor, other: torch.Tensor) -> Same | None:
        return compare_weights(
            archive(tmp_path, {"m.safetensors": save({"a": one})}),
            archive(tmp_path, {"m.safetensors": save({"a": other})}),
        ).same

    nan = torch.tensor([float("nan"), 1.0])
    assert compare(nan, nan.clone()) is Same.EXACT
    assert compare(torch.tensor([0.0]), torch.tensor([-0.0])) is Same.NEAR
    assert compare(nan, torch.tensor([0.0, 1.0])) is Same.APART
    assert compare(ONES.bfloat16(), ONES) is Same.APART, "another type"
    assert compare(torch.tensor(1), torch.tensor(1)) is Same.EXACT


def test_files_of_which_only_the_bytes_are_known(tmp_path: Path) -> None:
    one, other = archive(tmp_path, {"model.bin": b"one"}), archive(tmp_path, {"model.bin": b"two"})
    assert compare_weights(one, other).same is Same.APART
    assert compare_weights(one, one).same is Same.EXACT
    trees = archive(tmp_path, {"trees.json": b"1"}), archive(tmp_path, {"trees.json": b"2"})
    assert compare_weights(*trees).same is Same.APART, "where nothing else is the model"


def test_a_model_that_only_one_run_wrote(tmp_path: Path) -> None:
    one = archive(tmp_path, {"model.safetensors": save({"a": ONES})})
    assert compare_weights(None, None).same is None
    found = compare_weights(one, None)
    assert found.same is Same.APART and "uninterrupted" in found.differences[0].why


def test_what_a_file_would_run_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    one, other = (archive(tmp_path, {"model.pt": torch_file({"a": Evil(), "b": n})}) for n in range(2))
    assert compare_weights(one, other).same is Same.APART
    assert not (tmp_path / "ran").exists()


# Causes


def row(number: int, first: int | None) -> AttemptRow:
    return AttemptRow(
        number=number, started=0, ended=1, first=first, last=None, replayed=0, ended_by="", grace_used=None, codes={},
        saves=0,
    )  # fmt: skip


NOTHING = Weights(same=None, files=(), differences=(), others=())


@pytest.mark.parametrize(
    ("step", "attempt", "found", "words"),
    [
        (7, 1, "0.5", "two uninterrupted runs would differ"),
        (41, 2, "2.29", "near that of an untrained model"),
        (41, 2, "0.35", "order of the data"),
        (42, 2, "0.35", "optimizer's state"),
        (60, 2, "0.35", "the next epoch"),
    ],
)
def test_where_runs_part_says_what_usually_is_behind_it(step: int, attempt: int, found: str, words: str) -> None:
    first = Departure(metric="loss", step=step, attempt=attempt, expected="0.3", found=found)
    said = list(causes(first, NOTHING, [row(1, 0), row(2, 40)], 2.3, ours=False))
    assert words in said[0]


def test_our_own_api_is_named_where_it_is_used() -> None:
    first = Departure(metric="loss", step=41, attempt=2, expected="0.3", found="0.31")
    assert "run.track" in next(causes(first, NOTHING, [row(1, 0), row(2, 40)], 2.3, ours=True))


def test_statistics_of_batch_norm_alone(tmp_path: Path) -> None:
    def model(mean: float) -> Path:
        tensors = {"0.weight": ONES, "1.running_mean": ONES * mean}
        return archive(tmp_path, {"model.safetensors": save(tensors)})

    found = compare_weights(model(1), model(2))
    assert "batch norm" in next(causes(None, found, [], None, ours=True))
