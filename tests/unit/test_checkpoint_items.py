"""Tensors found in what torch.save wrote, and whatever else such bytes can hold."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moorage.checkpoint.items import Item, find_item
from moorage.checkpoint.source import Folder

PADDING = 777
"""Bytes before and after an item in its file."""


def saved(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def found_in(data: bytes, folder: Path) -> tuple[Item | None, bytes]:
    """The item in these bytes, which lie in the middle of a file; and the file."""
    content = b"\xaa" * PADDING + data + b"\xbb" * PADDING
    (folder / "file").write_bytes(content)
    with Folder(folder).open("file") as file:
        return find_item(file, PADDING, len(data)), content


TENSORS: dict[str, Callable[[], Tensor]] = {
    **{
        str(dtype): lambda dtype=dtype: torch.randint(0, 2, (5, 3)).to(dtype)  # type: ignore[misc]
        for dtype in (
            torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
            torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.bool, torch.complex64, torch.complex128,
            torch.float8_e4m3fn, torch.float8_e5m2,
        )
    },
    "a number": lambda: torch.tensor(7),
    "empty": lambda: torch.zeros(0, 4),
    "large": lambda: torch.randn(700, 401),
    "rows of another": lambda: torch.randn(10, 4)[3:7],
    "columns of another": lambda: torch.randn(10, 4)[:, 1:3],
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.randn(1, 3).expand(4, 3),
    "eight dimensions": lambda: torch.randn(1, 2, 1, 2, 1, 2, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_the_values_are_where_it_says(name: str, tmp_path: Path) -> None:
    tensor = TENSORS[name]()
    item, content = found_in(saved(tensor), tmp_path)
    assert item is not None
    assert (item.dtype, item.shape, item.strides) == (tensor.dtype, tensor.shape, tensor.stride())
    assert item.is_contiguous == tensor.is_contiguous()
    storage = torch.frombuffer(
        bytearray(content[item.offset : item.offset + item.size] or b"\0" * 16), dtype=item.dtype
    )
    values = storage.as_strided(item.shape, item.strides, item.first)
    assert saved(values.clone()) == saved(tensor.clone())


def test_an_item_of_more_than_four_gigabytes_is_found_by_its_64_bit_fields(tmp_path: Path) -> None:
    """Written with a hole in place of the values, so that it takes no room."""
    large = torch.empty((1 << 32) + 8, dtype=torch.uint8)
    with torch.serialization.skip_data(), (tmp_path / "file").open("wb") as file:
        torch.save(large, file)
    with Folder(tmp_path).open("file") as opened:
        assert opened.size > 1 << 32
        item = find_item(opened, 0, opened.size)
    assert item is not None
    assert (item.shape, item.size) == (large.shape, large.numel())
    with (tmp_path / "file").open("rb") as file:
        head = file.read(item.offset)
    assert b"data/0" in head and b"PK\3\4" in head[item.offset - 200 :]


@pytest.mark.parametrize(
    "value",
    [
        {"weight": torch.zeros(3)},
        [torch.zeros(3)],
        7,
        "text",
        torch.nn.Parameter(torch.zeros(3)),
        torch.eye(3).to_sparse(),
        torch.zeros(3, dtype=torch.complex64).conj(),
        torch.zeros(3, dtype=torch.complex64).conj().imag,
        torch.zeros(3, device="meta"),
    ],
    ids=["dict", "list", "number", "text", "parameter", "sparse", "conjugate", "negative", "meta"],
)
def test_what_is_no_plain_tensor_is_left_to_torch(value: object, tmp_path: Path) -> None:
    assert found_in(saved(value), tmp_path)[0] is None


def test_the_old_format_is_left_to_torch(tmp_path: Path) -> None:
    assert found_in(saved(torch.zeros(3), _use_new_zipfile_serialization=False), tmp_path)[0] is None


# What no torch has written


class Watched:
    """A file that is read nowhere but in the middle."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data) + 2 * PADDING

    def pieces(self) -> Iterator[memoryview]:
        raise AssertionError("all of the file is read")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        start = offset - PADDING
        assert 0 <= start <= start + len(buffer) <= len(self._data), "it reads outside of the item"
        buffer[:] = self._data[start : start + len(buffer)]


def found(data: bytes) -> Item | None:
    """Wherever it says that the values are, they are in `data`."""
    item = find_item(Watched(data), PADDING, len(data))
    if item is not None:
        assert PADDING <= item.offset <= item.offset + item.size <= PADDING + len(data)
        last = item.first + sum((n - 1) * stride for n, stride in zip(item.shape, item.strides, strict=True))
        assert 0 in item.shape or 0 <= (last + 1) * item.dtype.itemsize <= item.size
    return item


def described(shape: object = (3, 4), strides: object = (4, 1), first: object = 0, *, before: bytes = b"") -> bytes:
    """The pickle of a tensor of 12 numbers. before: more of it, which comes first."""

    def part(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + part("storage") + b"ctorch\nFloatStorage\n" + part("0") + part("cpu") + part(12) + b"tQ"
    rest = storage + part(first) + part(shape) + part(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02" + before + b"ctorch._utils\n_rebuild_tensor_v2\n(" + rest + b"tR."


def zipped(pickled: bytes, values: bytes = bytes(48), **more: bytes) -> bytes:
    """As torch lays it out."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {"data.pkl": pickled, "byteorder": sys.byteorder.encode(), "data/0": values, **more}.items():
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def test_no_part_of_an_item_is_one() -> None:
    data = saved(torch.randn(5, 3))
    assert found(data) is not None
    assert [found(data[:length]) for length in range(len(data))] == [None] * len(data)


def test_bytes_changed_at_random_lead_nowhere_else() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    die = random.Random(seed)
    whole = saved(torch.randn(5, 3))
    refused = 0
    for _ in range(5000):
        data = bytearray(whole)
        for _ in range(die.choice([1, 1, 2, 8])):
            data[die.randrange(len(data))] = die.randrange(256)
        refused += found(bytes(data)) is None
    assert refused > 500


FIELDS = {"packed": 20, "plain": 24, "at": 42}
"""Where they are in an entry of the directory."""


@pytest.mark.parametrize("value", [1, 46, 1 << 20, (1 << 31) - 1, (1 << 32) - 2, (1 << 32) - 1])
@pytest.mark.parametrize("fields", [("packed", "plain"), ("plain",), ("at",), ("packed", "plain", "at")])
@pytest.mark.parametrize("entry", [b"data.pkl", b"data/0", b"byteorder"])
def test_a_directory_that_lies(entry: bytes, fields: tuple[str, ...], value: int) -> None:
    data = bytearray(saved(torch.randn(5, 3)))
    place = data.rindex(b"archive/" + entry) - 46
    assert data[place : place + 4] == b"PK\1\2"
    for field in fields:
        struct.pack_into("<I", data, place + FIELDS[field], value)
    item = found(bytes(data))
    assert item is None or item.size == value == 1 or item.shape == (5, 3)


@pytest.mark.parametrize("start", [0, 1, 1 << 20, (1 << 32) - 2, (1 << 32) - 1])
@pytest.mark.parametrize("size", [0, 46, 1 << 20, (1 << 32) - 2, (1 << 32) - 1])
def test_a_directory_that_is_elsewhere(start: int, size: int) -> None:
    """With no 64-bit record to look into for what does not fit."""
    data = bytearray(zipped(described()))
    struct.pack_into("<II", data, len(data) - 22 + 12, size, start)
    assert found(bytes(data)) is None


@pytest.mark.parametrize(
    ("shape", "strides", "first"),
    [
        ((1 << 62, 4), (4, 1), 0),
        ((1 << 100, 4), (4, 1), 0),
        ((3, 4), (1 << 62, 1), 0),
        ((3, 4), (4, 1), 1 << 62),
        ((3, 4), (4, 1), 1),
        ((3, 4), (4, 1), -1),
        ((3, 4), (-4, 1), 11),
        ((-3, 4), (4, 1), 0),
        ((0, 4), (4, 1), 1 << 40),
        ((3, 4), (4,), 0),
        ((1,) * 65, (1,) * 65, 0),
        (("3", 4), (4, 1), 0),
        ((True, 4), (4, 1), 0),
        ([3, 4], (4, 1), 0),
        ((3.0, 4.0), (4, 1), 0),
        (None, None, None),
    ],
)
def test_a_shape_that_lies(shape: object, strides: object, first: object) -> None:
    assert found(zipped(described())) is not None
    assert found(zipped(described(shape, strides, first))) is None


def test_two_entries_of_one_name() -> None:
    """Readers differ in which of them they take."""
    assert found(zipped(described(), **{"x/../data.pkl": b""})) is not None
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = io.BytesIO(zipped(described()))
        with zipfile.ZipFile(data, "a") as archive:
            archive.writestr("archive/data.pkl", described((2, 2), (2, 1)))
    assert found(data.getvalue()) is None


def test_packed_values_are_left_to_torch() -> None:
    data = bytearray(zipped(described()))
    struct.pack_into("<H", data, data.rindex(b"archive/data/0") - 46 + 10, zipfile.ZIP_DEFLATED)
    assert found(bytes(data)) is None


def touches(mark: Path) -> dict[str, bytes]:
    """Pickles that make that file when they are loaded as usual."""
    command = f"touch {mark}"

    class Call:
        def __reduce__(self) -> Any:
            return os.system, (command,)

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    dotted = b"\x80\x04" + text("torch") + text("serialization.os.system") + b"\x93" + text(command) + b"\x85R."
    return {
        "reduce": pickle.dumps(Call()),
        "protocol 0": pickle.dumps(Call(), 0),
        "in a list": pickle.dumps([Call()]),
        "inst": f"(S'{command}'\nios\nsystem\n.".encode(),
        "obj": f"(cos\nsystem\nS'{command}'\no.".encode(),
        "dotted": dotted,
        "first of all": described(before=f"cos\nsystem\n(S'{command}'\ntR0".encode()),
        "getattr": f"cbuiltins\ngetattr\n(cposix\nsystem\nS'__call__'\ntR(S'{command}'\ntR.".encode(),
    }


@pytest.mark.parametrize("name", touches(Path("mark")))
def test_nothing_is_executed(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    pickled = touches(mark)[name]
    with contextlib.suppress(pickle.UnpicklingError):  # of what refers to a storage, once it has done its work
        pickle.loads(pickled)  # noqa: S301 - it does execute
    assert mark.exists()
    mark.unlink()
    assert found(zipped(pickled)) is None
    assert not mark.exists()


def test_torch_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would import parts of itself by their names."""
    asked: list[str] = []
    monkeypatch.setattr(torch, "__getattr__", asked.append)
    assert found(zipped(described().replace(b"ctorch\nFloatStorage\n", b"ctorch\n_inductor\n"))) is None
    assert not asked


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """A gigabyte more than this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_memo_of_any_number_takes_no_memory() -> None:
    with little_memory():
        assert found(zipped(described(before=b"Nr\xff\xff\xff\x3f0"))) is not None


@pytest.mark.parametrize("opcode", [b"\x96", b"\x8e", b"\x8d"], ids=["bytearray", "bytes", "text"])
@pytest.mark.parametrize("size", [1 << 34, 1 << 48, (1 << 63) - 1, (1 << 64) - 1])
def test_a_size_that_is_not_there_takes_no_memory(opcode: bytes, size: int) -> None:
    with little_memory():
        assert found(zipped(described(before=opcode + size.to_bytes(8, "little")))) is None


def test_what_one_pickle_does_to_a_stand_in_stays_in_it(tmp_path: Path) -> None:
    spoilt = described(before=b"ctorch._utils\n_rebuild_tensor_v2\nN}S'__defaults__'\n(K\x01ts\x86b0")
    found(zipped(spoilt))
    item = found(zipped(described()))
    assert item is not None and item.shape == (3, 4)
