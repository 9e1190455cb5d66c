"""Forward in low precision and with recomputed blocks, on one rank: same classes, same names, right numbers."""

from __future__ import annotations

import copy
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from moorage.errors import ConfigError
from moorage.training import recompute as recompute_module
from moorage.training.parallel import parallelize
from moorage.training.precision import Precision
from moorage.training.recompute import missing_for_compile
from moorage.training.strategy import Choice

CPU = torch.device("cpu")
SINGLE = Choice(strategy="single", shard_size=1, why="the test")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(8, 8), nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen = self.layer(x)
        return x + self.dropout(torch.relu(self.seen))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: torch.Tensor, *, twice: bool = False) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        for block in self.blocks:
            x = block(x)
        return {"out": x.bfloat16() if twice else x, "ids": torch.arange(3), "all": [x.half()]}


def net(precision: str = "fp32", **options: bool) -> Net:
    torch.manual_seed(0)
    model = parallelize(Net(), SINGLE, device=CPU, precision=Precision(precision, CPU), **options)
    assert isinstance(model, Net)
    return model


def gradients(model: Net) -> list[torch.Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model(torch.ones(4, 8))["out"].pow(2).mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_inside_is_low_precision_and_outputs_are_fp32(precision: str, dtype: torch.dtype) -> None:
    model = net(precision)
    outputs = model(torch.ones(2, 8), twice=True)
    assert model.blocks[0].seen.dtype == dtype  # type: ignore[union-attr]
    assert outputs["out"].dtype == outputs["all"][0].dtype == torch.float32
    assert outputs["ids"].dtype == torch.int64


def test_class_names_and_state_stay() -> None:
    model = net("bf16", activation_checkpointing=True)
    plain = Net()
    assert type(model).__name__ == "Net" and isinstance(model, Net)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]


def test_a_copy_has_weights_of_its_own_and_a_pickle_is_of_the_plain_class() -> None:
    model = net("bf16", activation_checkpointing=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert type(other) is Net and type(other.blocks[0]) is Block
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert torch.equal(other(torch.ones(1, 8))["out"], torch.ones(1, 8))


def test_a_forward_set_on_the_instance_is_kept() -> None:
    model = nn.Linear(4, 4)
    model.forward = lambda x: nn.functional.linear(x, model.weight) * 2  # type: ignore[method-assign, assignment]
    expected = model(torch.ones(1, 4))
    parallelize(model, SINGLE, device=CPU, precision=Precision("bf16", CPU))
    out = model(torch.ones(1, 4))
    assert out.dtype == torch.float32 and torch.allclose(out, expected, atol=0.05)
    assert not torch.equal(out, expected)


def test_recomputed_blocks_give_the_same_gradients_to_the_bit() -> None:
    plain, recomputed = net(), net(activation_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(gradients(plain), gradients(recomputed), strict=True))
    assert [block.calls for block in plain.blocks] == [1, 1]  # type: ignore[union-attr]
    assert [block.calls for block in recomputed.blocks] == [2, 2]  # type: ignore[union-attr]


def test_recomputing_a_model_without_blocks_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "moorage"):
        parallelize(
            nn.Linear(2, 2), SINGLE, device=CPU, precision=Precision("fp32", CPU), activation_checkpointing=True
        )
    assert "activation_checkpointing has no effect" in caplog.text


def test_compile_without_a_compiler_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING, "moorage"):
        model = net(compile=True)
    assert "compile has no effect: torch.compile needs a C++ compiler" in caplog.text
    assert model(torch.ones(1, 8))["out"].shape == (1, 8)


def test_what_compile_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recompute_module, "COMPILERS", ("sh",))
    monkeypatch.setattr(recompute_module.sysconfig, "get_path", lambda name: str(tmp_path))
    assert missing_for_compile(CPU) == "the headers of Python"
    (tmp_path / "Python.h").touch()
    assert missing_for_compile(CPU) == ""
    monkeypatch.setattr(recompute_module.importlib.util, "find_spec", lambda name: None)
    assert missing_for_compile(torch.device("cuda")) == "triton"


def test_fp16_with_fp16_parameters_is_an_error() -> None:
    with pytest.raises(ConfigError, match="needs a model with fp32 parameters"):
        parallelize(nn.Linear(2, 2).half(), SINGLE, device=CPU, precision=Precision("fp16", CPU))


@dataclass
class Scaled:
    precision: Precision
    weight: nn.Parameter
    optimizer: torch.optim.Optimizer

    def step(self, value: float) -> bool:
        self.precision.scale((self.weight * value).sum()).backward()
        self.precision.unscale(self.optimizer)
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad()
        return self.precision.update()


def scaled(name: str = "fp16") -> Scaled:
    weight = nn.Parameter(torch.zeros(2))
    return Scaled(precision=Precision(name, CPU), weight=weight, optimizer=torch.optim.SGD([weight], lr=1.0))


def test_scaling_leaves_the_step_as_it_is() -> None:
    job = scaled()
    assert job.step(0.25) is False
    assert job.weight.tolist() == [-0.25, -0.25]


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    job = scaled()
    scale = job.precision.scaler.get_scale()  # type: ignore[union-attr]
    assert job.step(float("inf")) is True
    assert job.weight.tolist() == [0, 0]
    assert job.precision.scaler.get_scale() == scale / 2  # type: ignore[union-attr]


def test_the_scale_is_taken_up_from_a_checkpoint_or_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    job = scaled()
    job.step(float("inf"))
    state = job.precision.scaler.state_dict()  # type: ignore[union-attr]
    other = scaled()
    other.precision.scaler.load_state_dict(state)  # type: ignore[union-attr]
    assert other.precision.scaler.state_dict() == state  # type: ignore[union-attr]
    with caplog.at_level(logging.INFO, "moorage"):
        scaled().precision.scaler.load_state_dict({})  # type: ignore[union-attr]
    assert "holds no gradient scale" in caplog.text


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_an_optimizer_that_sat_the_step_out_is_no_error(name: str) -> None:
    job = scaled(name)
    job.precision.unscale(job.optimizer)
    job.precision.step(job.optimizer)
    assert job.precision.update() is False
