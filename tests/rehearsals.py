"""What tests of rehearsals share: `moorage` as a user starts it, and a small program that goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import tarfile
import termios
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import wait_until

ROOT = Path(__file__).resolve().parent.parent

COUNTER = '''
"""Counts steps, each on top of the one before; goes on where it stopped; nothing of moorage, no torch."""

import argparse
import json
import os
import pathlib
import signal
import sys
import time

given = argparse.ArgumentParser()
given.add_argument("--steps", type=int, default=60)
given.add_argument("--pause", type=float, default=0.02)
given.add_argument("--save_every", type=int, default=1)
given.add_argument("--fault", default="")
given = given.parse_args()

base = pathlib.Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
state = base / "checkpoints" / "state.json"
step, value, speed = 0, 1.0, 0.0
if state.exists() and given.fault != "forgets":
    step, value, speed = json.loads(state.read_text())
    if given.fault == "chokes":
        raise RuntimeError("cannot read my own state")
    if given.fault == "forgets-speed":
        speed = 0.0
    print(f"went on where {step} steps were done", flush=True)

asked = []
if given.fault != "deaf":
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def save():
    part = state.with_name("state.json.sagemaker-ignore")
    part.write_text(json.dumps([step, value, speed]))
    part.rename(state)


first = os.environ.get("RANK", "0") == "0"
while step < given.steps:
    time.sleep(given.pause)
    step += 1
    if given.fault == f"raises-{step}":
        raise RuntimeError("the seventh seal")
    if first:
        print(f"step {step} loss {value:.6f}", flush=True)
    speed = 0.9 * speed + value / 10
    value -= speed / 10
    if first and step % given.save_every == 0:
        save()
    if asked:
        if first:
            save()
        sys.exit(143)
if first:
    (base / "model").mkdir(parents=True, exist_ok=True)
    (base / "model" / "weights.json").write_text(json.dumps([step, value]))
'''

LOSS = ("--metric", "loss=loss ([-0-9.]+)")


@dataclass(kw_only=True)
class Command:
    """One `moorage ...` that runs, its output in files."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def told(self) -> str:
        """Everything it said on stderr so far: what it tells, and the hosts' logs."""
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    @property
    def printed(self) -> str:
        return (self.folder / "stdout").read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, timeout: float = 60) -> None:
        wait_until(
            lambda: text in self.told or self.process.poll() is not None, timeout=timeout, what=f"{text!r} on stderr"
        )
        assert text in self.told, f"it ended without {text!r}:\n{self.told}"

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def ends(self, timeout: float = 120) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end in {timeout:.0f} s:\n{self.told}") from None


@dataclass(kw_only=True)
class Shell:
    """A folder in which `moorage` is called, empty at first; beside it what it said, and a register of its own."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    _running: list[Command] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path) -> Iterator[Shell]:
        """What a test leaves running is killed, and cleaned up behind."""
        shell = cls(folder=folder / "work")
        shell.folder.mkdir()
        try:
            yield shell
        finally:
            left = [command for command in shell._running if command.process.poll() is None]
            for command in left:
                command.process.kill()
                command.process.wait(10)
            if left:
                shell.moorage("clean")

    def program(self, text: str = COUNTER, name: str = "train.py") -> Path:
        path = self.folder / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    @property
    def state(self) -> Path:
        return self.folder.with_name("state")

    @property
    def register(self) -> Path:
        return self.state / "moorage" / "rehearsals"

    def start(self, *arguments: str) -> Command:
        out = self.folder.with_name(f"out-{len(self._running)}")
        out.mkdir(parents=True)
        with (out / "stdout").open("wb") as stdout, (out / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "moorage.cli", *arguments],
                cwd=self.folder,
                env={**os.environ, "XDG_STATE_HOME": str(self.state), **self.env},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self._running.append(Command(process=process, folder=out))
        return self._running[-1]

    def moorage(self, *arguments: str, code: int = 0, timeout: float = 150) -> Command:
        """Run it to its end."""
        command = self.start(*arguments)
        ended = command.ends(timeout)
        assert ended == code, f"moorage {' '.join(arguments)}: exit code {ended}\n{command.told}\n{command.printed}"
        return command

    def run(self, *arguments: str, code: int = 0, program: str = COUNTER, timeout: float = 150) -> dict[str, Any]:
        """`moorage run` of the program on plain processes: the outcome, as --json prints it."""
        path = self.program(program)
        done = self.moorage("run", str(path), *arguments, "--json", code=code, timeout=timeout)
        outcome: dict[str, Any] = json.loads(done.printed)
        self.check_nothing_left(Path(outcome["folder"]))
        return outcome

    def check_nothing_left(self, folder: Path) -> None:
        """Of a run that has ended, in its folder and in the register."""
        assert not (self.folder / folder / "hosts").exists()
        assert list(self.register.iterdir()) == []

    def events(self, outcome: dict[str, Any], kind: str) -> list[dict[str, Any]]:
        lines = (self.folder / outcome["folder"] / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def log(self, outcome: dict[str, Any], host: str = "algo-1") -> str:
        return (self.folder / str(outcome["folder"]) / "logs" / f"{host}.log").read_text()

    def archived(self, outcome: dict[str, Any], what: str = "model") -> dict[str, bytes]:
        assert outcome[what] is not None
        with tarfile.open(self.folder / outcome[what]) as tar:
            files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
            return {name: file.read() for name, file in files.items() if file is not None}


def alive(session: int) -> list[int]:
    """Processes of that session, zombies aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


def on_a_terminal(command: list[str], *, cwd: Path, env: dict[str, str]) -> tuple[int, str]:
    """Exit code, and what it wrote to a terminal of 100 columns that is its stderr."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    process = subprocess.Popen(
        command, cwd=cwd, env={**os.environ, "TERM": "xterm-256color", **env}, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    written = bytearray()
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
        while data := os.read(ours, 65536):
            written += data
    os.close(ours)
    return process.wait(60), written.decode("utf-8", "replace")
