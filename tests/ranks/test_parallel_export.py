"""The model exported from several ranks is the one a single rank would write."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from moorage.errors import ExportError
from moorage.training.export import export
from moorage.training.parallel import parallelize
from moorage.training.precision import Precision
from moorage.training.strategy import Choice
from ranks.gloo import run_ranks

CPU = torch.device("cpu")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.5))


def write(rank: int, strategy: str, folder: str, limit: int) -> str:
    torch.manual_seed(0)
    world_size = dist.get_world_size()
    choice = Choice(strategy=strategy, shard_size={"fsdp": world_size, "hsdp": 2}.get(strategy, 1), why="the test")
    model = parallelize(Tied(), choice, device=CPU, precision=Precision("bf16", CPU))
    if limit and rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        export(model, Path(folder), {"strategy": strategy}, is_main=rank == 0)
    except ExportError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 2), ("fsdp", 3), ("hsdp", 4)])
def test_the_files_are_those_of_the_plain_model(tmp_path: Path, strategy: str, world_size: int) -> None:
    assert run_ranks(write, world_size, strategy, str(tmp_path / "spread"), 0) == [""] * world_size
    torch.manual_seed(0)
    plain = Tied()
    export(plain, tmp_path / "plain", {"strategy": strategy}, is_main=True)
    weights = load_file(tmp_path / "spread" / "model.safetensors")
    plain.load_state_dict(weights)
    spread, alone = (tmp_path / name / "model.safetensors" for name in ("spread", "plain"))
    assert spread.read_bytes() == alone.read_bytes()
    facts = json.loads((tmp_path / "spread" / "model.json").read_text())
    other = json.loads((tmp_path / "plain" / "model.json").read_text())
    assert facts.pop("class").split(".")[-1] == other.pop("class").split(".")[-1] == "Tied"
    assert facts == other and facts["shared"] == [["embed.weight", "head.weight"]]


def test_a_disk_that_is_full_on_rank_0_is_an_error_on_every_rank(tmp_path: Path) -> None:
    texts = run_ranks(write, 2, "fsdp", str(tmp_path), 64)
    assert texts[0] == texts[1] and "EFBIG" in texts[0]
    assert not list(tmp_path.iterdir())
