"""Which parts of a model count as its blocks."""

from __future__ import annotations

import pytest
from torch import nn

from moorage.errors import ConfigError
from moorage.training.blocks import find_blocks, find_groups
from moorage.training.parallel import measure


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


class Other(Block):
    pass


class Encoder(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.layers = nn.ModuleList(blocks)
        self.head = nn.Linear(4, 9)


def residual_stages() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block()), nn.Linear(4, 2)
    )


def nested_pairs() -> nn.Module:
    """As in transformers written as ModuleList([ModuleList([attention, feed_forward]), ...])."""
    return nn.ModuleList(nn.ModuleList([Block(), Other()]) for _ in range(2))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Encoder(Block(), Block()), ["layers.0", "layers.1"]),
        (nn.Sequential(Encoder(Block(), Block()), nn.Linear(4, 2)), ["0.layers.0", "0.layers.1"]),
        (Encoder(Block(), Block(), Other()), ["layers.0", "layers.1"]),
        (Encoder(Block(), Other()), []),
        (residual_stages(), ["1.0", "1.1", "2.0", "2.1"]),
        (nested_pairs(), ["0.0", "0.1", "1.0", "1.1"]),
        (nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)]), ["0", "1"]),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), []),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False),
            ["layers.0", "layers.1"],
        ),
    ],
)
def test_blocks_are_found(model: nn.Module, expected: list[str]) -> None:
    assert [name for name, _ in find_blocks(model)] == expected


def test_without_blocks_fsdp_gathers_layer_by_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    assert [name for name, _ in find_groups(model)] == ["0", "2"]


def test_a_program_can_name_its_blocks() -> None:
    model = Encoder(Block(), Other())
    assert [name for name, _ in find_blocks(model, ["Other"])] == ["layers.1"]
    with pytest.raises(ConfigError, match="holds no Blok"):
        find_blocks(model, ["Blok"])


def test_the_names_of_hugging_face_are_heard() -> None:
    model = Encoder(Block(), Other())
    model._no_split_modules = ["Block", "AbsentHere"]  # type: ignore[assignment]
    assert [name for name, _ in find_blocks(model)] == ["layers.0"]


def test_a_block_that_shares_a_weight_stays_with_the_rest() -> None:
    model = Encoder(Block(), Block(), Block())
    model.layers[2].inner[0].weight = model.layers[1].inner[0].weight  # type: ignore[index, union-attr]
    assert [name for name, _ in find_blocks(model)] == ["layers.0"]


def test_the_size_counts_each_parameter_once_and_the_largest_group() -> None:
    model = Encoder(Block(), Block())
    model.head.bias.requires_grad_(False)
    size = measure(model)
    assert size.num_params == 2 * 40 + 36 + 45
    assert size.trainable_params == size.num_params - 9
    assert size.param_bytes == 4 * size.num_params
    assert size.group_params == 36 + 45
