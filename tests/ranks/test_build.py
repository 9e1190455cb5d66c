"""A model that run.build() made and run.finish() wrote is served with no code of anybody's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from moorage.errors import ProgramError
from moorage.training import recipe
from moorage.training.recipe import Recipe, example_files
from servers import serving
from support import ROOT, JobFolder, digits, run_train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """By two ranks under fsdp, from a folder that has more than the program."""
    base = tmp_path_factory.mktemp("trained")
    code = base / "algo-1" / "code"
    (code / "parts").mkdir(parents=True)
    (code / "parts" / "sizes.py").write_text("CLASSES = 10\n")
    (code / "requirements.txt").write_text("")
    (code / ".git").mkdir()
    (code / ".git" / "hook.py").write_text("secret")
    (code / "data.csv").write_text("1,2\n")
    folder = digits(JobFolder(base / "algo-1"), epochs="1")
    text = (ROOT / "examples" / "digits" / "train.py").read_text()
    text = text.replace("import moorage\n", "import moorage\nfrom parts.sizes import CLASSES\n", 1)
    (code / "train.py").write_text(text.replace("nn.Linear(32 * 4 * 4, 10)", "nn.Linear(32 * 4 * 4, CLASSES)"))
    with run_train(base, ranks=2, strategy="fsdp") as (host,):
        assert host.ends(90) == 0, host.report()
    return folder


def test_what_lies_beside_the_model(trained: JobFolder) -> None:
    found = sorted(path.relative_to(trained.model).as_posix() for path in trained.model.rglob("*") if path.is_file())
    assert found == [
        "code/parts/sizes.py", "code/requirements.txt", "code/train.py", "example.npy", "model.json",
        "model.safetensors",
    ]  # fmt: skip
    facts = json.loads((trained.model / "model.json").read_text())
    assert facts["factory"] == {"name": "train:build_model", "arguments": {}}
    assert facts["example"] == {"file": "example.npy", "dtype": "float32", "shape": [None, 1, 8, 8]}


def test_it_is_served_as_it_was_trained(trained: JobFolder) -> None:
    channel = np.load(trained.base / "input" / "data" / "train" / "digits.npz")
    images = channel["images"][-200:].astype(np.float32)[:, None] / 16
    with serving(trained.model) as server:
        server.wait_for("train:build_model built with {}")
        server.wait_for("warmed up with example.npy")
        body = json.dumps({"instances": images.tolist()})
        reply = server.ask(body=body, content_type="application/json")
        wrong = server.ask(body="[[1, 2]]", content_type="application/json")
    scores = np.array(reply.json()["predictions"])
    assert (scores.argmax(1) == channel["labels"][-200:]).mean() > 0.7
    assert wrong.status == 422 and "float32 of shape [*, 1, 8, 8]" in wrong.json()["error"]


def test_a_factory_that_could_not_be_called_again_is_refused_before_any_step() -> None:
    def inner() -> nn.Module:
        return nn.Linear(1, 1)

    with pytest.raises(ProgramError, match="cannot be repeated by serve"):
        Recipe.of(inner, {})
    with pytest.raises(ProgramError, match="cannot be repeated by serve"):
        Recipe.of(lambda: nn.Linear(1, 1), {})
    with pytest.raises(ProgramError, match="an argument cannot be written down"):
        Recipe.of(nn.Linear, {"in_features": torch.ones(1)})
    found = Recipe.of(nn.Linear, {"in_features": 2, "out_features": 3})
    assert (found.name, found.folder, found.code()) == ("torch.nn.modules.linear:Linear", None, {})


def test_code_that_is_too_much_is_left_out_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.py").write_text("x" * 100)
    found = Recipe(name="a:b", arguments={}, folder=tmp_path)
    assert list(found.code()) == ["code/a.py"]
    monkeypatch.setattr(recipe, "MOST_BYTES", 99)
    assert found.code() == {} and "is not put beside the model" in caplog.text


def test_examples() -> None:
    files, facts = example_files({"ids": torch.ones(1, 3, dtype=torch.int64), "mask": np.ones((1, 3), np.bool_)})
    assert json.loads(files["example.json"]) == {"inputs": {"ids": [[1, 1, 1]], "mask": [[True, True, True]]}}
    assert facts["inputs"]["mask"] == {"dtype": "bool", "shape": [None, 3]}
    assert example_files(torch.ones(1, 2, dtype=torch.bfloat16))[1]["dtype"] == "bfloat16"
    assert example_files({"text": "hello"}) == ({"example.json": b'{"text": "hello"}'}, {"file": "example.json"})
    for wrong in (torch.ones(0, 2), torch.tensor(1.0), {"a": object()}, float("nan")):
        with pytest.raises(ProgramError):
            example_files(wrong)
