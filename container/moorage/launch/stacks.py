"""What a rank is doing at this moment, seen from outside: its stacks, by faulthandler, and its state in the kernel."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from moorage.contract.progress import STACK_SIGNAL
from moorage.launch.diagnosis import short

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x", re.MULTILINE)
_FRAME = re.compile(r'^ +File "(?P<file>[^"]+)", line (?P<line>\S+) in (?P<name>.+)$', re.MULTILINE)

_STOP = re.compile(r"/moorage/training/stop\.py$")

_WAITS = (
    (re.compile(r"/torch/(?:distributed/|nn/parallel/distributed\.py$)"), ""),
    (re.compile(r"/torch/autograd/graph\.py$"), "_engine_run_backward"),
    (re.compile(r"/torch/cuda/(?:__init__|streams)\.py$"), "synchronize"),
    (_STOP, ""),
)
"""Files and functions in which a rank waits for others: in a collective, in a backward pass, which reduces gradients,
for its device, in the exchange of wishes."""

_NOT_THE_USERS = re.compile(r"/site-packages/|/dist-packages/|/lib/python3|/moorage/(?:training|checkpoint)/|^<")

_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "in a system call that cannot be interrupted, for a disk or a device",
    "T": "stopped by a signal such as SIGSTOP",
    "t": "stopped by a debugger",
    "Z": "ended",
    "X": "ended",
    "": "ended",
}


@dataclass(frozen=True, kw_only=True)
class State:
    """Of a process. letter: as in proc(5), "" where there is none. wchan: where in the kernel it sleeps, if it says."""

    letter: str
    wchan: str

    @property
    def is_stopped(self) -> bool:
        return self.letter in ("T", "t")

    @property
    def has_ended(self) -> bool:
        return self.letter in ("Z", "X", "")

    def describe(self) -> str:
        where = f", wchan {self.wchan}" if self.wchan else ""
        letter = f"state {self.letter}: " if self.letter else ""
        return f"{letter}{_STATES.get(self.letter, 'unknown')}{where}"


def state_of(pid: int) -> State:
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return State(letter="", wchan="")
    try:
        wchan = Path(f"/proc/{pid}/wchan").read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # not allowed in every container
        wchan = ""
    return State(letter=letter, wchan="" if wchan == "0" else wchan)


def ask(pid: int) -> bool:
    """Ask a rank for its stacks. False where nobody would answer: the signal would end a process that expects none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        caught = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")), 0)
        if not caught & 1 << (STACK_SIGNAL - 1):
            return False
        os.kill(pid, STACK_SIGNAL)
    except OSError:  # it has ended
        return False
    return True


@dataclass(frozen=True)
class Frame:
    file: str
    line: str
    name: str

    def __str__(self) -> str:
        return f"{short(self.file)}:{self.line} in {self.name}"


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """One answer. threads: their frames, the innermost first; that of the main thread comes first."""

    threads: tuple[tuple[Frame, ...], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Stacks:
        """text: what faulthandler wrote, where the main thread, being the oldest, is the last."""
        starts = [match.start() for match in _THREAD.finditer(text)]
        blocks = [text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)]
        threads = [tuple(Frame(m["file"], m["line"], m["name"]) for m in _FRAME.finditer(block)) for block in blocks]
        return cls(threads=tuple(reversed([thread for thread in threads if thread])))

    @property
    def others(self) -> tuple[tuple[Frame, ...], ...]:
        """Without the one that waits for a stop."""
        return tuple(thread for thread in self.threads[1:] if not _STOP.search(thread[0].file))

    @property
    def main(self) -> tuple[Frame, ...]:
        return self.threads[0] if self.threads else ()

    @property
    def waits(self) -> bool:
        """Whether the main thread waits for other ranks."""
        return bool(self.main) and any(
            place.search(self.main[0].file) and (not name or self.main[0].name == name) for place, name in _WAITS
        )

    @property
    def where(self) -> str:
        """The place in the program, or the innermost one where there is none of the program."""
        theirs = [frame for frame in self.main if not _NOT_THE_USERS.search(frame.file)]
        return str((theirs or list(self.main))[0]) if self.main else ""
