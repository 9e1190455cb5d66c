"""The log pump on real pipes."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.processes.logs import STDERR, STDOUT, LogPump, PumpHandler, Stream
from support import wait_until

WORDS = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), max_size=8)


class Output:
    """A pipe for the pump to write to, and what came through it."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.data = b""

    def read_all(self) -> bytes:
        """Closes it."""
        os.close(self.write_end)
        self.collect()
        return self.data

    def collect(self) -> None:
        """Until nobody holds the other end."""
        while chunk := os.read(self.read_end, 65536):
            self.data += chunk
        os.close(self.read_end)


class Source:
    def __init__(self, pump: LogPump, target: int, prefix: bytes = b"") -> None:
        read_end, self.write_end = os.pipe()
        self.ended = threading.Event()
        self.stream = pump.add(Stream(descriptor=read_end, target=target, prefix=prefix, on_end=self.ended.set))

    def write(self, data: bytes) -> None:
        assert os.write(self.write_end, data) == len(data)

    def close(self) -> None:
        os.close(self.write_end)


class Pumping:
    def __init__(self) -> None:
        self.out, self.err = Output(), Output()
        self.pump = LogPump(self.out.write_end, self.err.write_end)

    def close(self) -> None:
        assert self.pump.close(5)


@pytest.fixture
def pumping() -> Iterator[Pumping]:
    pumping = Pumping()
    yield pumping
    pumping.pump.close(5)


@settings(max_examples=30, deadline=None)
@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.integers(1, 25))
def test_every_line_of_every_stream_comes_whole_and_in_order(lines: tuple[list[bytes], ...], size: int) -> None:
    pumping = Pumping()
    sources = [Source(pumping.pump, (STDOUT, STDERR)[n % 2], b"[%d] " % n) for n in range(4)]
    unwritten = [b"".join(line + b"\n" for line in of_one) for of_one in lines]
    while any(unwritten):  # in turns, a piece each
        for n, source in enumerate(sources):
            source.write(unwritten[n][:size])
            unwritten[n] = unwritten[n][size:]
    for source in sources:
        source.close()
    pumping.close()
    found = [line for output in (pumping.out, pumping.err) for line in output.read_all().split(b"\n")[:-1]]
    for n, of_one in enumerate(lines):
        assert [line[4:] for line in found if line.startswith(b"[%d] " % n)] == of_one
    assert len(found) == sum(map(len, lines))


def test_stdout_and_stderr_go_where_they_belong(pumping: Pumping) -> None:
    out, err = Source(pumping.pump, STDOUT, b"[h:1] "), Source(pumping.pump, STDERR)
    out.write(b"an answer\n")
    err.write(b"a trace without a newline")
    out.close()
    err.close()
    pumping.pump.say("ours")
    pumping.close()
    assert pumping.out.read_all() == b"[h:1] an answer\n"
    assert sorted(pumping.err.read_all().splitlines()) == [b"a trace without a newline", b"ours"]


def test_bytes_that_are_not_text_survive(pumping: Pumping) -> None:
    source = Source(pumping.pump, STDOUT)
    source.write(bytes(range(14, 256)) + b"\n")
    source.close()
    pumping.close()
    assert pumping.out.read_all() == bytes(range(14, 256)) + b"\n"


def test_dropping_a_pipe_that_stays_open_loses_nothing_that_was_in_it(pumping: Pumping) -> None:
    source = Source(pumping.pump, STDOUT)
    source.write(b"one\ntwo")
    pumping.pump.drop(source.stream)
    assert source.ended.wait(5)
    pumping.close()
    assert pumping.out.read_all() == b"one\ntwo\n"
    source.close()


def test_an_output_that_nobody_reads_blocks_neither_us_nor_the_end() -> None:
    pumping = Pumping()
    source = Source(pumping.pump, STDOUT)
    for _ in range(3):
        source.write(b"x" * 40_000 + b"\n")
    for _ in range(20_000):
        pumping.pump.say("we go on")
    assert pumping.pump.close(0.2) is False
    # Once somebody reads, it ends after all, and nothing of the rank is missing.
    readers = [threading.Thread(target=output.collect) for output in (pumping.out, pumping.err)]
    for reader in readers:
        reader.start()
    assert pumping.pump.close(5) is True
    os.close(pumping.out.write_end)
    os.close(pumping.err.write_end)
    for reader in readers:
        reader.join(5)
    assert pumping.out.data == (b"x" * 40_000 + b"\n") * 3
    assert 0 < len(pumping.err.data.splitlines()) <= 20_000
    source.close()


def test_an_output_that_is_gone_is_no_error(pumping: Pumping) -> None:
    os.close(pumping.out.read_end)
    source = Source(pumping.pump, STDOUT)
    for _ in range(5):
        source.write(b"into the void\n" * 4000)
        wait_until(lambda: len(source.stream.tail) > 0, what="reading")
    source.close()
    assert source.ended.wait(5)


def test_the_tail_is_bounded(pumping: Pumping) -> None:
    source = Source(pumping.pump, STDERR)
    reader = threading.Thread(target=pumping.err.collect)
    reader.start()
    for number in range(1000):
        source.write(b"%06d " % number + b"x" * 500 + b"\n")
    source.write(b"head" + b"y" * 50_000 + b"foot\n")
    source.close()
    assert source.ended.wait(5)
    tail = list(source.stream.tail)
    assert sum(map(len, tail)) <= 64 * 1024 and len(tail) > 50
    assert tail[-1].startswith(b"head") and tail[-1].endswith(b"foot") and len(tail[-1]) < 5000
    assert tail[-2].startswith(b"000999")
    pumping.close()
    os.close(pumping.err.write_end)
    reader.join(5)


def test_our_own_log_is_marked_line_by_line(pumping: Pumping) -> None:
    logger = logging.getLogger("test-of-the-pump")
    logger.addHandler(PumpHandler(pumping.pump))
    logger.propagate = False
    logger.warning("two\nlines")
    logger.setLevel(logging.INFO)
    logger.info("one")
    pumping.close()
    expected = [b"moorage: warning: two", b"moorage: warning: lines", b"moorage: one"]
    assert pumping.err.read_all().splitlines() == expected
