"""State by name: what a program tracks comes back bit for bit, however it is wrapped, or an error says what cannot."""

from __future__ import annotations

import json
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from moorage.checkpoint.jsonable import decode, encode, tensor_names
from moorage.checkpoint.metadata import TensorFacts
from moorage.checkpoint.rng import capture_rng, restore_rng
from moorage.checkpoint.state import capture, restore, template
from moorage.errors import CheckpointError


class Saved:
    """What a checkpoint would hold: copies of the tensors, and the JSON as text."""

    def __init__(self, tracked: Mapping[str, Any]) -> None:
        tensors, objects = capture(tracked)
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.text = json.dumps(objects, allow_nan=False)
        self.stored = {name: TensorFacts(shape=tuple(t.shape), dtype=t.dtype) for name, t in tensors.items()}

    def into(self, tracked: Mapping[str, Any]) -> None:
        objects = json.loads(self.text)
        targets = template(tracked, self.stored, objects)
        with torch.no_grad():
            for name, target in targets.items():
                target.detach().copy_(self.tensors[name])
        restore(tracked, targets, objects)


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.module = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 3, bias=False)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.module(x)).relu())


OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, history_size=3, max_iter=3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (net(x) - x).square().mean()
        value.backward()
        return value

    optimizer.step(loss)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = OPTIMIZERS[name](net.parameters())
    for seed in range(3):
        step(net, optimizer, seed)
    optimizer.param_groups[0]["lr"] *= 0.5
    saved = Saved({"model": net, "optimizer": optimizer})
    for seed in range(3, 6):
        step(net, optimizer, seed)

    torch.manual_seed(1)
    again = Net()
    optimizer = OPTIMIZERS[name](again.parameters())
    saved.into({"model": again, "optimizer": optimizer})
    for seed in range(3, 6):
        step(again, optimizer, seed)
    assert same(weights(net), weights(again))


def _wrap_parts(net: Net) -> Net:
    net.module = torch.compile(net.module, backend="eager")
    net.head = checkpoint_wrapper(net.head)
    return net


WRAPPED: dict[str, Callable[[Net], nn.Module]] = {
    "plain": lambda net: net,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "checkpointed": checkpoint_wrapper,
    "parts": _wrap_parts,
    "data parallel": nn.DataParallel,
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_names_do_not_depend_on_wrappers(wrapping: str) -> None:
    net = WRAPPED[wrapping](Net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    saved = Saved({"model": net, "optimizer": optimizer})
    # `module` is the program's own name here, and `scratch` is not persistent.
    assert sorted(name.removeprefix("model/") for name in saved.tensors) == [
        "head.weight", "module.bias", "module.weight", "norm.bias", "norm.num_batches_tracked", "norm.running_mean",
        "norm.running_var", "norm.weight",
    ]  # fmt: skip
    other = Net()
    saved.into({"model": other, "optimizer": torch.optim.SGD(other.parameters(), lr=0.1)})
    assert torch.equal(other.head.weight, saved.tensors["model/head.weight"])


def test_tied_parameters_are_saved_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    saved = Saved({"model": net, "optimizer": torch.optim.AdamW(net.parameters())})
    assert list(saved.tensors) == ["model/0.weight"]
    other = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    with pytest.raises(CheckpointError, match=r"not in the checkpoint: model/1\.weight"):
        saved.into({"model": other})
    other[1].weight = other[0].weight
    saved.into({"model": other})
    assert torch.equal(other[1].weight, net[0].weight)


def test_extra_state_and_what_hooks_make_up_come_back() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.seen: Any = 0
            self.scale = torch.ones(3)
            self._register_state_dict_hook(lambda m, state, prefix, _: state.update({f"{prefix}scale": m.scale * 2}))

        def get_extra_state(self) -> Any:
            return {"seen": self.seen, "tensor": torch.full((2,), float(self.seen))}

        def set_extra_state(self, state: Any) -> None:
            self.seen = (
                state["seen"] if torch.equal(state["tensor"], torch.full((2,), float(state["seen"]))) else "wrong"
            )

        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            if f"{prefix}scale" in state:
                self.scale = state.pop(f"{prefix}scale") / 2
            super()._load_from_state_dict(state, prefix, *rest)

    net = nn.Sequential(Odd())
    net[0].seen, net[0].scale = 7, torch.tensor([1.0, 2.0, 3.0])
    saved = Saved({"model": net})
    other = nn.Sequential(Odd())
    saved.into({"model": other})
    assert other[0].seen == 7 and torch.equal(other[0].scale, net[0].scale)


def test_schedulers_scalers_and_groups_come_back() -> None:
    def make() -> dict[str, Any]:
        net = Net()
        optimizer = torch.optim.SGD(
            [{"params": net.module.parameters(), "lr": 0.5}, {"params": net.head.parameters(), "weight_decay": 0.1}],
            lr=0.1,
        )
        schedulers = [
            torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5]),
            torch.optim.lr_scheduler.SequentialLR(
                optimizer,
                [
                    torch.optim.lr_scheduler.ConstantLR(optimizer),
                    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
                ],
                milestones=[3],
            ),
            torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
            torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=9),
        ]
        scaler = torch.amp.GradScaler("cpu")
        return {"model": net, "optimizer": optimizer, "scaler": scaler} | {f"s{i}": s for i, s in enumerate(schedulers)}

    tracked = make()
    tracked["optimizer"].step()
    for _ in range(4):
        for i in range(4):
            tracked[f"s{i}"].step(*([1.0] if i == 2 else []))
    tracked["scaler"].scale(torch.ones(()))
    saved = Saved(tracked)
    others = make()
    saved.into(others)
    assert [g["lr"] for g in others["optimizer"].param_groups] == [g["lr"] for g in tracked["optimizer"].param_groups]
    for key in ("s0", "s1", "s2", "s3", "scaler"):
        assert others[key].state_dict() == tracked[key].state_dict(), key
    assert isinstance(others["s0"].milestones, Counter)


def test_any_object_with_state_comes_back() -> None:
    class Thing:
        def __init__(self, state: Any) -> None:
            self.state = state

        def state_dict(self) -> Any:
            return {"it": self.state}

        def load_state_dict(self, state: Any) -> None:
            self.state = state["it"]

    thing = Thing({"mean": torch.arange(3.0), 7: [torch.ones(2, 2), (1, "a")], "7": torch.zeros(1)})
    saved = Saved({"thing": thing})
    other = Thing(None)
    saved.into({"thing": other})
    assert torch.equal(other.state["mean"], torch.arange(3.0)) and torch.equal(other.state[7][0], torch.ones(2, 2))
    assert other.state[7][1] == (1, "a") and torch.equal(other.state["7"], torch.zeros(1))

    thing.state = {"a": [0, lambda: None]}
    with pytest.raises(CheckpointError, match=r"thing/it/a/1 is a builtins\.function"):
        capture({"thing": thing})


def test_a_checkpoint_of_another_model_says_how_it_differs() -> None:
    saved = Saved({"model": Net(4)})
    with pytest.raises(CheckpointError) as raised:
        saved.into({"model": nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)]), "ema": Net(4)})
    text = str(raised.value)
    assert "9 not in the checkpoint: model/0.weight, model/0.bias" in text and "and 5 more" in text
    assert "8 only in the checkpoint: model/head.weight" in text
    with pytest.raises(CheckpointError, match=r"model/norm\.bias is \[5\], in the checkpoint \[4\]|7 different"):
        saved.into({"model": Net(5)})
    with pytest.raises(CheckpointError, match=r"torch\.float64, in the checkpoint torch\.float32"):
        saved.into({"model": Net(4).double()})
    with pytest.raises(CheckpointError, match="has no memory yet"):
        with torch.device("meta"):
            net = Net(4)
        saved.into({"model": net})


def test_other_groups_of_parameters_are_named() -> None:
    net = Net()
    saved = Saved({"model": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1)})
    with pytest.raises(CheckpointError, match=r"only in the checkpoint: optimizer\[0\]: model/head.weight"):
        saved.into({"model": net, "optimizer": torch.optim.SGD(net.module.parameters(), lr=0.1)})


def test_another_optimizer_is_noticed() -> None:
    net = Net()
    saved = Saved({"model": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1)})
    with pytest.raises(CheckpointError, match="optimizer is AdamW, in the checkpoint SGD"):
        saved.into({"model": net, "optimizer": torch.optim.AdamW(net.parameters())})


def test_an_optimizer_of_an_untracked_model_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="that no tracked module has"):
        capture({"model": Net(), "optimizer": torch.optim.SGD(Net().parameters(), lr=0.1)})


def test_an_optimizer_may_be_tracked_after_its_model() -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    step(net, optimizer, 0)
    saved = Saved({"model": net, "optimizer": optimizer})
    objects = json.loads(saved.text)
    fresh = torch.optim.AdamW(net.parameters())
    targets = template({"optimizer": fresh}, saved.stored, objects, among={"model": net})
    restore({"optimizer": fresh}, {name: saved.tensors[name] for name in targets}, objects, among={"model": net})
    assert torch.equal(fresh.state[net.head.weight]["exp_avg"], optimizer.state[net.head.weight]["exp_avg"])


# JSON

TEXT = st.text(st.characters(codec="utf-8"))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.binary(),
    lambda inner: st.lists(inner)
    | st.lists(inner).map(tuple)
    | st.dictionaries(TEXT | st.integers() | st.sampled_from(["$", ("a", 1)]), inner)
    | st.dictionaries(TEXT, inner).map(OrderedDict)
    | st.lists(inner).map(lambda items: deque(items, maxlen=9)),
    max_leaves=20,
)  # fmt: skip


def types(value: Any) -> Any:
    if isinstance(value, list | tuple | deque):
        return type(value), [types(item) for item in value]
    if isinstance(value, dict):
        return type(value), [(types(key), types(item)) for key, item in value.items()]
    return type(value)


@given(PLAIN)
def test_plain_data_comes_back_in_value_and_type(value: Any) -> None:
    again = decode(json.loads(json.dumps(encode(value, "it"), allow_nan=False)), {}.__getitem__)
    assert again == value and types(again) == types(value)


def test_rarer_data_comes_back() -> None:
    tensors: dict[str, Tensor] = {}
    value = {
        "set": {1, 2}, "frozen": frozenset("ab"), "size": torch.Size([2, 3]), "dtype": torch.bfloat16,
        "device": torch.device("cpu"), "counter": Counter("aab"), "nan": float("nan"), "low": float("-inf"),
        "default": defaultdict(list, {1: [2]}), "scalar": numpy.float64(0.1), "array": numpy.arange(6).reshape(2, 3),
        "empty": numpy.zeros((0, 2)), "tensor": torch.arange(3),
    }  # fmt: skip
    again = decode(json.loads(json.dumps(encode(value, "it", tensors))), tensors.__getitem__)
    for key in ("set", "frozen", "size", "dtype", "device", "counter", "low", "default"):
        assert again[key] == value[key] and type(again[key]) is type(value[key]), key
    assert again["nan"] != again["nan"] and again["default"].default_factory is list
    assert type(again["scalar"]) is numpy.float64 and again["scalar"] == 0.1
    for key in ("array", "empty"):
        assert again[key].dtype == value[key].dtype and numpy.array_equal(again[key], value[key])
    assert torch.equal(again["tensor"], torch.arange(3))
    assert set(tensors) == set(tensor_names(encode(value, "it", {})))


@pytest.mark.parametrize(
    "value", [object(), print, defaultdict(lambda: 0), 1 << 5000, type("Own", (dict,), {})(), numpy.array(["a"]), Net(),
              torch.ones(2).to_sparse()], ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_cannot_be_saved_is_named(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"it/a/1 is a .* which a checkpoint cannot hold"):
        encode({"a": [0, value]}, "it", {})


def test_a_loop_in_the_state_ends() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(CheckpointError, match="holds itself"):
        encode(value, "it")


@pytest.mark.parametrize(
    "value",
    [{"$": "eval", "v": "1"}, {"$": "dtype", "v": "torch.load"}, {"$": "dict", "v": 3}, {"$": "tuple"}, {"$": ["x"]}],
)
def test_forged_state_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        decode([value], {}.__getitem__)


# Random numbers


def draw() -> list[Any]:
    return [torch.rand(3).tolist(), random.random(), random.gauss(0, 1), numpy.random.rand(), numpy.random.randn()]


def test_random_numbers_go_on() -> None:
    draw()
    # Half of a pair of gaussians is kept back by both.
    saved = {name: tensor.clone() for name, tensor in capture_rng(3).items()}
    assert set(saved) == {"rng/00003/torch", "rng/00003/python", "rng/00003/numpy"}
    expected = draw()
    assert draw() != expected
    restore_rng(3, saved)
    assert draw() == expected
    restore_rng(4, saved)
    assert draw() != expected
