"""What lies in a model folder, loaded and asked: each kind of model, handlers, batches, and what cannot be served."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from moorage.errors import ConfigError, ModelError
from moorage.serving import npy
from moorage.serving.exchange import Answer, Request, Servable
from moorage.serving.loading import load
from moorage.serving.settings import ServeSettings

FACTORY = """
import torch
class Net(torch.nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = torch.nn.Linear(2, width)
    def forward(self, x):
        return self.layer(x)
def build(width):
    return Net(width)
"""
EXAMPLE = {"file": "example.npy", "dtype": "float32", "shape": [None, 2]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import sys

    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    (tmp_path / "code").mkdir()
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("inference", "net", "other"):
            del sys.modules[name]


def factory(folder: Path, **facts: Any) -> None:
    (folder / "code" / "net.py").write_text(FACTORY)
    recipe = {"factory": {"name": "net:build", "arguments": {"width": 3}}, **facts}
    (folder / "model.json").write_text(json.dumps(recipe))
    save_file({"layer.weight": torch.ones(3, 2), "layer.bias": torch.zeros(3)}, folder / "model.safetensors")


def opened(folder: Path, **settings: Any) -> Servable:
    return load(folder, ServeSettings(**settings), device="cpu", env={})


def ask(servable: Servable, body: bytes, **given: str) -> Answer:
    given.setdefault("content_type", "application/json")
    (answer,) = servable.answer([Request(id="r1", body=memoryview(body), **given)])
    return answer


def told(answer: Answer) -> Any:
    assert isinstance(answer.body, bytes)
    return json.loads(answer.body)


def test_a_factory_is_served_without_code_and_warmed_up(folder: Path) -> None:
    factory(folder, example=EXAMPLE)
    (folder / "example.npy").write_bytes(npy.encode(np.ones((1, 2), np.float32)))
    servable = opened(folder, max_batch_size=4)
    assert "net:build" in servable.describe() and "9 parameters" in servable.describe()
    assert "alone and 4 at once" in servable.warm_up()
    assert told(ask(servable, b"[[1, 2]]")) == [[3, 3, 3]]
    assert told(ask(servable, b'{"instances": [[1, 2], [0, 1]]}')) == {"predictions": [[3, 3, 3], [1, 1, 1]]}
    csv = ask(servable, b"1,2\n0,1\n", content_type="text/csv", accept="text/csv")
    assert csv.body == b"3.0,3.0,3.0\n1.0,1.0,1.0\n" and csv.content_type == "text/csv"
    array = ask(
        servable, npy.encode(np.float32([[1, 2]])), content_type="application/x-npy", accept="application/x-npy"
    )
    assert isinstance(array.body, bytes) and npy.decode(memoryview(array.body)).tolist() == [[3, 3, 3]]
    assert ask(servable, b"[1, 2]\n[0, 1]\n", content_type="application/jsonlines").status == 200
    echoed = ask(servable, b"[[1, 2]]", custom_attributes="trace=7")
    assert echoed.custom_attributes == "trace=7"


@pytest.mark.parametrize(
    ("body", "given", "status", "says"),
    [
        (b"", {}, 400, "empty"),
        (b"{", {}, 400, "not JSON"),
        (b"[NaN]", {}, 400, "NaN is no number"),
        (b"[" * 100_000, {}, 400, "nested too deeply"),
        (b'"\xff"', {}, 400, "not UTF-8"),
        (b"[[1, 2, 3]]", {}, 422, "expected float32 of shape [*, 2]"),
        (b'[["a", 2]]', {}, 422, "got text"),
        (b"[[1], [1, 2]]", {}, 422, "unequal length"),
        (b'{"wrong": 1}', {}, 422, "got an object of wrong"),
        (b"<a/>", {"content_type": "text/xml"}, 415, "text/xml"),
        (b"[[1, 2]]", {"accept": "image/png"}, 406, "image/png"),
        (b"\x93NUMPYx", {"content_type": "application/x-npy"}, 400, "not NPY"),
    ],
)
def test_what_a_client_gets_wrong(folder: Path, body: bytes, given: dict[str, str], status: int, says: str) -> None:
    factory(folder, example=EXAMPLE)
    (folder / "example.npy").write_bytes(npy.encode(np.ones((1, 2), np.float32)))
    answer = ask(opened(folder), body, **given)
    assert (answer.status, told(answer)["request_id"]) == (status, "r1")
    assert says in told(answer)["error"] and "Traceback" not in told(answer)["error"]


def test_a_batch_is_joined_and_one_that_is_wrong_in_it_fails_alone(folder: Path) -> None:
    factory(folder, example=EXAMPLE)
    (folder / "example.npy").write_bytes(npy.encode(np.ones((1, 2), np.float32)))
    servable = opened(folder, max_batch_size=8)
    bodies = [b"[[1, 2]]", b"[[1, 2, 3]]", b"[[0, 1], [1, 1]]", b"nonsense"]
    answers = servable.answer([Request(id=f"r{n}", body=memoryview(body)) for n, body in enumerate(bodies)])
    assert [answer.status for answer in answers] == [200, 422, 200, 400]
    assert told(answers[2]) == [[1, 1, 1], [2, 2, 2]]


HANDLERS = """
import json
def model_fn(model_dir):
    return {"offset": 10}
def input_fn(data, content_type):
    assert isinstance(data, str), type(data)
    return json.loads(data)["x"]
def predict_fn(x, model, context):
    if x < 0:
        raise ValueError("negative: hidden detail")
    context.set_response_header(0, "X-Seen", context.request_id)
    return x + model["offset"]
def output_fn(prediction, accept):
    return json.dumps({"y": prediction}), "application/json"
"""


def test_handlers_are_called_with_a_context_and_fail_without_a_traceback_to_the_client(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "code" / "inference.py").write_text(HANDLERS)
    servable = opened(folder)
    assert "model_fn, input_fn, predict_fn, output_fn of inference.py" in servable.describe()
    answer = ask(servable, b'{"x": 5}')
    assert told(answer) == {"y": 15} and answer.headers == {"x-seen": "r1"}
    failed = ask(servable, b'{"x": -1}')
    assert failed.status == 500 and "hidden" not in told(failed)["error"]
    assert "negative: hidden detail" in caplog.text and "request r1 failed" in caplog.text


def test_a_handler_says_422_streams_and_transforms(folder: Path) -> None:
    (folder / "code" / "inference.py").write_text(
        "from moorage.serving.exchange import RequestError\n"
        "def model_fn(model_dir): return 1\n"
        "async def transform_fn(model, data, content_type, accept):\n"
        "    if data == 'no': raise RequestError('not that')\n"
        "    def parts():\n"
        "        yield 'a'\n        yield {'b': 1}\n"
        "    return parts()\n"
    )
    servable = opened(folder)
    assert (ask(servable, b"no", content_type="text/csv").status, servable.warm_up()[:13]) == (422, "not warmed up")
    answer = ask(servable, b"yes", content_type="text/csv")
    assert not isinstance(answer.body, bytes | memoryview) and list(answer.body) == [b"a", b'{"b":1}\n']


def script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 1), torch.ones(1, 2)), path / "model.pt")


def exported(path: Path) -> None:
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(nn.Linear(2, 1), (torch.ones(2, 2),), dynamic_shapes=({0: batch},)),
                      path / "model.pt2")  # fmt: skip


def weights(path: Path) -> None:
    torch.save(nn.Linear(2, 1), path / "model.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("write", "named"), [(script, "TorchScript"), (exported, "torch.export program")])
def test_programs_are_served_by_themselves(folder: Path, write: Callable[[Path], None], named: str) -> None:
    write(folder)
    servable = opened(folder)
    assert named in servable.describe()
    assert len(told(ask(servable, b"[[1, 2], [3, 4], [5, 6]]"))) == 3
    assert servable.warm_up()


def test_a_pickle_needs_the_switch_and_is_loud(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights(folder)
    with pytest.raises(ModelError, match=r"nothing in .* can be served by itself") as error:
        opened(folder)
    assert "MOORAGE_UNSAFE_PICKLE" in error.value.why
    assert len(told(ask(opened(folder, unsafe_pickle=True), b"[[1, 2]]"))) == 1
    assert "whatever code its author put into it runs now" in caplog.text


def test_precision_and_compile_say_what_they_did(folder: Path) -> None:
    factory(folder)
    servable = opened(folder, precision="bf16")
    assert "bf16, on cpu" in servable.describe() and told(ask(servable, b"[[1, 2]]")) == [[3, 3, 3]]
    with pytest.raises(ModelError, match="fp16 needs a GPU"):
        opened(folder, precision="fp16")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import there_is_no_such_package\n", "imports there_is_no_such_package, which is not installed"),
        ("x = 1 / 0\n", "was found, and failed as it was imported: ZeroDivisionError"),
        ("def model_fn(model_dir): raise OSError('no disk')\n", "model_fn failed: OSError: no disk"),
        ("def model_fn(): pass\n", "model_fn of inference.py takes 0 arguments"),
        ("def model_fn(d): pass\ndef transform_fn(a, b, c, d): pass\ndef predict_fn(a, b): pass\n", "has transform_fn"),
    ],
)
def test_what_fails_in_a_handlers_module_is_told_apart(folder: Path, code: str, says: str) -> None:
    (folder / "code" / "inference.py").write_text(code)
    with pytest.raises(ModelError) as error:
        opened(folder)
    assert says in error.value.what


def test_a_handler_that_is_not_there_is_told_apart_from_one_that_fails(folder: Path) -> None:
    factory(folder)
    with pytest.raises(ModelError, match=r"there is no handler other\.py"):
        opened(folder, handler="other.py")
    with pytest.raises(ModelError, match="there is no handler"):
        opened(folder, handler="../../etc/passwd.py")
    with pytest.raises(ModelError, match="there is no module other"):
        opened(folder, handler="other")
    with pytest.raises(ConfigError, match="precision"):
        ServeSettings.read({"MOORAGE_PRECISION": "fp8"})


def test_what_does_not_fit_says_so(folder: Path) -> None:
    factory(folder, factory={"name": "net:build", "arguments": {"width": 4}})
    with pytest.raises(ModelError, match="does not fit what net:build builds"):
        opened(folder)
    (folder / "model.json").write_text('{"factory": {"name": "net:missing"}}')
    with pytest.raises(ModelError, match="net has no function or class 'missing'"):
        opened(folder)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    (folder / "model.json").write_text('{"factory": {"name": "net:build", "arguments": {"width": 3}}}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        opened(folder)
