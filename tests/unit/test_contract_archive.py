"""Unpacking archives, hostile ones most of all."""

from __future__ import annotations

import gzip
import io
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moorage.contract.archive import MAX_DEPTH, extract
from moorage.errors import ProgramError

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def pack(path: Path, *members: Member, format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w:gz", format=format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if content else None)
    return path


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def unpack(tmp_path: Path) -> Callable[..., Path]:
    """Unpack the members into a folder; when that fails, nothing of them may be left anywhere."""

    def unpack(*members: Member, **limits: int) -> Path:
        archive = pack(tmp_path / "code.tar.gz", *members)
        try:
            extract(archive, tmp_path / "home" / "code", **limits)
        except ProgramError:
            assert everything(tmp_path) <= {"code.tar.gz", "home"}
            raise
        assert everything(tmp_path / "home") == {
            "code",
            *(f"code/{name}" for name in everything(tmp_path / "home/code")),
        }
        return tmp_path / "home" / "code"

    return unpack


def test_files_and_folders_arrive(unpack: Callable[..., Path]) -> None:
    folder = unpack(
        member(".", type=tarfile.DIRTYPE, mode=0o700),
        member("./train.py", b"print(1)", mode=0o640),
        member("src/run.sh", b"#!/bin/sh\n", mode=0o6777),
        member("empty", type=tarfile.DIRTYPE, mode=0o1777),
        member("x" * 150 + "/long.py", b"long"),
    )
    assert everything(folder) == {"train.py", "src", "src/run.sh", "empty", "x" * 150, "x" * 150 + "/long.py"}
    assert (folder / "train.py").read_bytes() == b"print(1)"
    modes = {name: (folder / name).stat().st_mode & 0o7777 for name in ("train.py", "src/run.sh", "empty", "src")}
    assert modes == {"train.py": 0o644, "src/run.sh": 0o755, "empty": 0o755, "src": 0o755}


def test_a_member_that_comes_again_replaces_the_first(unpack: Callable[..., Path]) -> None:
    assert (unpack(member("a", b"1"), member("a", b"22")) / "a").read_bytes() == b"22"


def test_an_archive_made_by_tar(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/train.py").write_bytes(b"x" * 512)
    subprocess.run(["tar", "-C", tmp_path / "src", "-czf", tmp_path / "code.tar.gz", "."], check=True)
    extract(tmp_path / "code.tar.gz", tmp_path / "code")
    assert (tmp_path / "code/train.py").read_bytes() == b"x" * 512


GOOD = member("train.py", b"print(1)")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([GOOD, member("../evil", b"x")], "'../evil' is outside the folder"),
        ([GOOD, member("a/../../evil", b"x")], "'a/../../evil' is outside the folder"),
        ([GOOD, member("/tmp/evil", b"x")], "'/tmp/evil' is outside the folder"),
        ([GOOD, member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "'link' is a link"),
        ([GOOD, member("link", type=tarfile.SYMTYPE, linkname="train.py")], "'link' is a link"),
        ([GOOD, member("link", type=tarfile.LNKTYPE, linkname="train.py")], "'link' is a link"),
        ([GOOD, member("pipe", type=tarfile.FIFOTYPE)], "'pipe' is neither a regular file nor a folder"),
        ([GOOD, member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "'null' is neither"),
        ([GOOD, member("disk", type=tarfile.BLKTYPE)], "'disk' is neither"),
        ([GOOD, member("/".join("a" * (MAX_DEPTH + 1)), b"x")], "folders deep"),
        ([GOOD, member("a", b"1"), member("a/b", b"2")], "'a/b' cannot be written"),
        ([GOOD, member("a/b", b"2"), member("a", b"1")], "'a' cannot be written"),
        ([GOOD, member("n" * 300, b"1")], "cannot be written"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_member_is_named_and_nothing_is_left(
    unpack: Callable[..., Path], members: list[Member], says: str
) -> None:
    with pytest.raises(ProgramError) as caught:
        unpack(*members)
    assert says in str(caught.value)
    assert "code.tar.gz" in str(caught.value)


def test_a_link_and_then_a_file_through_it(unpack: Callable[..., Path], tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    with pytest.raises(ProgramError, match="'way' is a link"):
        unpack(member("way", type=tarfile.SYMTYPE, linkname=str(outside)), member("way/evil", b"x"))
    assert list(outside.iterdir()) == []


def test_size_and_number_are_bounded(unpack: Callable[..., Path]) -> None:
    with pytest.raises(ProgramError, match="'b' is beyond the limit of 1000 bytes"):
        unpack(member("a", b"x" * 600), member("b", b"x" * 600), max_bytes=1000)
    with pytest.raises(ProgramError, match="'f3' is beyond the limit"):
        unpack(*(member(f"f{number}") for number in range(9)), max_members=3)


def test_a_bomb_is_found_before_it_grows(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.tar.gz"
    header = member("big", size=2**40)[0].tobuf()
    with gzip.open(archive, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(64):
            file.write(bytes(2**20))
    with pytest.raises(ProgramError, match="'big' is beyond the limit"):
        extract(archive, tmp_path / "code", max_bytes=10**6)
    assert everything(tmp_path) == {"bomb.tar.gz"}


def test_a_header_that_eats_the_memory(unpack: Callable[..., Path]) -> None:
    with pytest.raises(ProgramError, match="described by a header of"):
        unpack(member("a", b"x", pax_headers={"comment": "x" * 2**20}))


@pytest.mark.parametrize("size", [-1, -512, -(10**9)])
def test_a_negative_size_does_not_turn_the_reader_round(tmp_path: Path, size: int) -> None:
    good = member("a", b"x" * 512)[0].tobuf(format=tarfile.GNU_FORMAT)
    field = (256**12 + size).to_bytes(12, "big")
    bad = bytearray(good[:124] + field + good[136:])
    bad[148:156] = b" " * 8
    bad[148:156] = b"%06o\0 " % sum(bad)
    archive = tmp_path / "code.tar.gz"
    archive.write_bytes(gzip.compress(good + b"x" * 512 + bytes(bad) + bytes(1024)))
    started = time.monotonic()
    with pytest.raises(ProgramError):
        extract(archive, tmp_path / "code")
    assert time.monotonic() - started < 5
    assert everything(tmp_path) == {"code.tar.gz"}


@pytest.mark.parametrize("kept", [0, 1, 10, 100, 300, -1, -8])
def test_a_torn_archive_is_not_half_an_archive(tmp_path: Path, kept: int) -> None:
    archive = pack(tmp_path / "code.tar.gz", *(member(f"f{n}", random.Random(n).randbytes(700)) for n in range(3)))
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(ProgramError, match=r"code\.tar\.gz was not unpacked.*cannot be read.*whole tar\.gz"):
        extract(archive, tmp_path / "code")
    assert everything(tmp_path) == {"code.tar.gz"}


def test_a_broken_header_is_not_the_end(tmp_path: Path) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for info, content in (member("a", b"x"), member("b", b"y")):
            tar.addfile(info, io.BytesIO(content))
    data = bytearray(plain.getvalue())
    data[1024] ^= 1
    (tmp_path / "code.tar.gz").write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(ProgramError, match="what follows 'a' cannot be read"):
        extract(tmp_path / "code.tar.gz", tmp_path / "code")
    assert everything(tmp_path) == {"code.tar.gz"}


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "code.zip").write_bytes(b"PK\3\4")
    with pytest.raises(ProgramError, match="must be a whole"):
        extract(tmp_path / "code.zip", tmp_path / "code")
    with pytest.raises(ProgramError, match="No such file"):
        extract(tmp_path / "nothing.tar.gz", tmp_path / "code")


def test_a_folder_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    archive = pack(tmp_path / "code.tar.gz", GOOD)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/mine.py").touch()
    with pytest.raises(ProgramError, match="not empty"):
        extract(archive, tmp_path / "code")
    assert everything(tmp_path) == {"code.tar.gz", "code", "code/mine.py"}


def test_a_disk_without_room(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: both are an errno of write()."""
    archive = pack(tmp_path / "code.tar.gz", GOOD, member("big", bytes(10**6)))
    program = (
        "import resource, sys; from pathlib import Path; from moorage.contract.archive import extract\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "extract(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, archive, tmp_path / "code"], capture_output=True, text=True, check=False
    )
    assert "'big' cannot be written. File too large (errno 27)" in run.stderr
    assert everything(tmp_path) == {"code.tar.gz"}


def test_no_flipped_byte_gets_anything_out_of_the_folder(tmp_path: Path) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in (GOOD, member("src/" + "y" * 120, b"z" * 600), member("d", type=tarfile.DIRTYPE)):
            tar.addfile(info, io.BytesIO(content) if content else None)
    chance = random.Random(0)
    home = tmp_path / "home"
    for _ in range(300):
        data = bytearray(plain.getvalue())
        start = 512 * chance.randrange(len(data) // 512)
        for _ in range(chance.randrange(1, 4)):
            data[start + chance.randrange(512)] = chance.randrange(256)
        # A right checksum, or nothing but the checksum would be tested.
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        (tmp_path / "code.tar.gz").write_bytes(gzip.compress(bytes(data), 1))
        try:
            extract(tmp_path / "code.tar.gz", home / "code", max_bytes=10**6)
        except ProgramError:
            assert not (home / "code").exists()
        else:
            subprocess.run(["rm", "-r", home / "code"], check=True)
        assert everything(tmp_path) == {"code.tar.gz", "home"}
