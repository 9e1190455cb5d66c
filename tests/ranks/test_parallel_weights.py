"""Where the first weights of a spread model come from: rank 0, or the seed, whatever the number of ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from moorage.errors import ConfigError
from moorage.training.parallel import parallelize, unwrap
from moorage.training.precision import Precision
from moorage.training.strategy import Choice
from ranks.gloo import run_ranks

CPU = torch.device("cpu")
State = dict[str, torch.Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)
        self.norm = nn.BatchNorm1d(6)


class Model(nn.Module):
    """Tied weights, a padding row, an odd number of rows, and buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6, padding_idx=3)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.memory = nn.LSTM(6, 6)
        self.head = nn.Linear(6, 7)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(3, 3).tril().bool())
        self.register_buffer("angles", torch.arange(4) / 3, persistent=False)

    def forward(self, ids: torch.Tensor) -> Any:
        return self.head(self.memory(self.embed(ids))[0]) * 1  # fsdp warns of a view that leaves the model


class Scaled(Model):
    """Initialises itself as a whole, in the ways programs do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(5, 3))
        self.init_weights()

    def init_weights(self) -> None:
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=0.02)
        for block in self.blocks:
            nn.init.xavier_uniform_(block.attention.in_proj_weight)  # type: ignore[union-attr]
            block.norm.reset_parameters()  # type: ignore[union-attr]
        with torch.no_grad():
            self.scale.copy_(torch.randn(5, 3))
            self.head.bias.zero_().add_(0.5)
        device = self.scale.device
        self.mask = torch.ones(3, 3, device=device).tril().bool()
        self.angles = torch.arange(4, device=device) / 3


class Custom(nn.Module):
    """Initialises by a method for each module, as nanoGPT does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 4)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.constant_(module.bias, 0.25)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.gate = nn.Parameter(torch.zeros(4))


def spread(model: Any, strategy: str, **options: Any) -> nn.Module:
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    shard_size = {"fsdp": world_size, "hsdp": 2}.get(strategy, 1)
    choice = Choice(strategy=strategy, shard_size=shard_size, why="the test")
    return parallelize(model, choice, device=CPU, precision=Precision("fp32", CPU), **options)


def whole(model: nn.Module) -> State:
    tensors = [*unwrap(model).named_parameters(), *unwrap(model).named_buffers()]
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for name, t in tensors}


def check_same(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def from_rank_0(rank: int, strategy: str, kind: str) -> tuple[State, State, bool]:
    torch.manual_seed(rank)
    built = []

    def build() -> Model:
        built.append(Model())
        return built[-1]

    given: Any = build if kind == "function" else build()
    if kind == "model":
        built[0].mask.fill_(rank == 1)  # type: ignore[operator]
    model = spread(given, strategy)
    torch.manual_seed(0)
    plain = Model()
    if kind == "model":
        plain.mask.fill_(False)  # type: ignore[operator]
    first = whole(model)
    inner = unwrap(model)
    assert inner.head.weight is inner.embed.weight  # type: ignore[union-attr]
    model(torch.tensor([[1, 2]])).sum().backward()
    return whole(plain), first, built[0].head.weight.is_meta


@pytest.mark.parametrize(
    ("strategy", "world_size", "kind"),
    [("ddp", 2, "model"), ("fsdp", 3, "model"), ("fsdp", 2, "function"), ("hsdp", 4, "function")],
)
def test_all_ranks_begin_with_the_weights_of_rank_0(strategy: str, world_size: int, kind: str) -> None:
    for expected, seen, _ in run_ranks(from_rank_0, world_size, strategy, kind):
        check_same(seen, expected)


def sketched(rank: int) -> bool:
    kinds = []

    def build() -> Model:
        model = Model()
        kinds.append(model.head.weight.is_meta)
        return model

    spread(build, "fsdp")
    return kinds == [rank != 0]


def test_only_rank_0_builds_a_sharded_model_in_full() -> None:
    assert run_ranks(sketched, 2) == [True, True]


def from_seed(rank: int, strategy: str, name: str) -> State:
    kind = {"Model": Model, "Scaled": Scaled, "Custom": Custom}[name]
    torch.manual_seed(rank)  # what the program drew before does not matter
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = kind()
    if name == "Model":
        # What reset_parameters() cannot know is built for real, as a program would.
        model.mask, model.angles = torch.ones(3, 3).tril().bool(), torch.arange(4) / 3
    model = spread(model, strategy, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    return whole(model)


@pytest.mark.parametrize(
    ("name", "places"),
    [("Model", [("ddp", 2), ("fsdp", 3)]), ("Scaled", [("fsdp", 2), ("hsdp", 4)]), ("Custom", [("fsdp", 3)])],
)
def test_a_meta_model_has_the_weights_of_the_seed_on_any_number_of_ranks(
    name: str, places: list[tuple[str, int]]
) -> None:
    plain = from_seed(0, "single", name)
    for strategy, world_size in places:
        for seen in run_ranks(from_seed, world_size, strategy, name):
            check_same(seen, plain)
    torch.manual_seed(5)
    if name == "Model":
        built = Model()
        check_same(
            {k: v for k, v in plain.items() if "embed" in k}, {k: v for k, v in whole(built).items() if "embed" in k}
        )
        assert plain["embed.weight"][3].abs().sum() == 0
    if name == "Scaled":
        assert (
            plain["head.bias"].eq(0.5).all()
            and plain["scale"].std() > 0.5
            and plain["memory.weight_hh_l0"].std() < 0.05
        )
    if name == "Custom":
        assert plain["first.bias"].eq(0.25).all() and plain["first.weight"].std() < 0.05


def uninitialised(rank: int, what: str) -> str:
    with torch.device("meta"):
        model = Bare() if what == "gate" else Model()
    if what == "init_weights":
        model.init_weights = model.head.reset_parameters  # type: ignore[union-attr, assignment]
    try:
        spread(model, "fsdp")
    except ConfigError as error:
        return str(error)
    return "nothing wrong"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gate", "nothing initialises gate. its module has no reset_parameters()"),
        ("mask", "nothing initialises angles, mask"),
        ("init_weights", "nothing initialises angles, blocks.0.attention.in_proj_bias"),
    ],
)
def test_what_nothing_initialises_is_named(what: str, message: str) -> None:
    for text in run_ranks(uninitialised, 2, what):
        assert message in text and "init_weights()" in text


def unlike(rank: int) -> str:
    try:
        spread(nn.Linear(2, 2 + rank), "fsdp")
    except ConfigError as error:
        return str(error)
    return "alike"


def test_ranks_with_different_models_are_an_error_and_not_a_hang() -> None:
    for text in run_ranks(unlike, 2):
        assert "ranks 0 and 1 have built different models: bias is (2,) torch.float32 and (3,) torch.float32" in text


def unshardable(rank: int) -> str:
    model = nn.Linear(2, 2)
    model.temperature = nn.Parameter(torch.tensor(1.0))
    try:
        spread(model, "fsdp")
    except ConfigError as error:
        return str(error)
    return "sharded"


def test_what_torch_cannot_shard_is_an_error_that_says_why() -> None:
    for text in run_ranks(unshardable, 2):
        assert "strategy fsdp cannot shard the model" in text and "scalar" in text
