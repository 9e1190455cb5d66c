"""The exported model: read back by the plain library, named as the program names it, whole or not there at all."""

from __future__ import annotations

import io
import json
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from moorage.errors import ExportError
from moorage.training.export import export
from moorage.training.tensorfile import DTYPES, Layout, write_tensor


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.table = nn.Parameter(torch.arange(12.0).reshape(3, 4).t())  # not contiguous
        self.register_buffer("scale", torch.tensor(2.5, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


def test_the_plain_library_reads_back_what_was_written(tmp_path: Path) -> None:
    model = Tied()
    export(model, tmp_path / "model", {"step": 7, "metrics": {"loss": 0.5}}, is_main=True)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    other = Tied()
    other.load_state_dict(weights)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(weights[name].dtype == tensor.dtype for name, tensor in model.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]


def test_the_facts_describe_the_model(tmp_path: Path) -> None:
    export(Tied(), tmp_path, {"step": 7, "strategy": "single"}, is_main=True)
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["step"] == 7 and facts["strategy"] == "single"
    assert facts["class"].endswith("test_export.Tied")
    assert facts["num_params"] == 7 * 4 + 12
    assert facts["dtypes"] == {"F32": 3, "BF16": 1, "BOOL": 1}
    assert facts["tensors"]["table"] == {"dtype": "F32", "shape": [4, 3]}
    assert facts["shared"] == [["embed.weight", "head.weight"]]
    assert facts["torch"] == torch.__version__ and facts["moorage"]
    assert facts["bytes"] == (tmp_path / "model.safetensors").stat().st_size


def test_names_are_those_of_the_program_after_compile(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0] = torch.compile(model[0], backend="eager")
    export(torch.compile(model, backend="eager"), tmp_path, {}, is_main=True)
    assert set(load_file(tmp_path / "model.safetensors")) == {"0.weight", "0.bias"}


def test_another_rank_writes_nothing(tmp_path: Path) -> None:
    export(nn.Linear(2, 2), tmp_path / "model", {}, is_main=False)
    assert not (tmp_path / "model").exists()


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """Files of this process end at `after` bytes, with an error as a full disk has: EFBIG in place of ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num_features", [100, 2000])
def test_a_failing_write_names_the_errno_and_leaves_the_old_model_alone(tmp_path: Path, num_features: int) -> None:
    export(nn.Linear(2, 2), tmp_path, {"step": 1}, is_main=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(after=4096), pytest.raises(ExportError, match=r"EFBIG.*checkpoints"):
        export(nn.Linear(num_features, 100), tmp_path, {"step": 2}, is_main=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file where the folder should be")
    with pytest.raises(ExportError, match=rf"{tmp_path}/model.*(EEXIST|ENOTDIR)"):
        export(nn.Linear(2, 2), tmp_path / "model", {}, is_main=True)


def test_facts_that_json_cannot_hold_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="facts"):
        export(nn.Linear(2, 2), tmp_path, {"loss": torch.ones(1)}, is_main=True)
    assert not list(tmp_path.iterdir())


def test_a_tensor_the_format_lacks_is_named(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("odd", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ExportError, match=r"odd of torch\.complex128"):
        export(model, tmp_path, {}, is_main=True)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES, key=str)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
def test_any_tensors_come_back(kinds: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    numbers = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (dtype, shape) in kinds.items():
        width = torch.empty((), dtype=dtype).element_size()
        highest = 2 if dtype is torch.bool else 256
        raw = torch.randint(0, highest, (*shape, width), dtype=torch.uint8, generator=numbers)
        tensors[name] = raw.view(dtype).reshape(shape)
    layout = Layout.of(tensors)
    with tempfile.NamedTemporaryFile() as file:
        buffer = io.BytesIO()
        buffer.write(layout.header)
        for name in layout.names:
            write_tensor(buffer, tensors[name])
        Path(file.name).write_bytes(buffer.getvalue())
        assert len(buffer.getvalue()) == layout.size
        entries = json.loads(layout.header[8:])
        for name, tensor in tensors.items():  # aligned, to be mapped into memory
            assert (len(layout.header) + entries[name]["data_offsets"][0]) % tensor.element_size() == 0
        with safe_open(file.name, "pt") as reader:
            assert set(reader.keys()) == set(tensors)
            for name, tensor in tensors.items():
                back = reader.get_tensor(name)
                assert back.dtype == tensor.dtype and back.shape == tensor.shape
                assert back.reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()
