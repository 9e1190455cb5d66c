"""The `console` blocks of a document: their commands, run as they stand there, and what they are said to print.

A block's marker, an HTML comment on the line before it, names its test: `<!-- test: NAME -->` is test_NAME. With
`<!-- test: NAME; not run: COMMAND, REASON -->` a command of it is left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from support import ROOT

_BLOCK = re.compile(r"(?P<before>[^\n]*)\n```console\n(?P<text>.*?)\n```", re.DOTALL)
_MARKER = re.compile(r"<!-- test: (?P<test>\w+)(; not run: (?P<command>[^,]+), (?P<reason>.+?))? -->")
_NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")
_NOT_OF_A_CLONE = ("build", "dist", "ml", "__pycache__")


@dataclass(frozen=True, kw_only=True)
class Command:
    """output: the lines shown below it; `...` stands for any."""

    line: str
    output: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Block:
    """test: the name in its marker, "" without one. left_out: the command that is not run."""

    test: str
    commands: tuple[Command, ...]
    left_out: str = ""
    document: str = ""


def blocks(document: Path) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(document.read_text(encoding="utf-8")):
        marker = _MARKER.fullmatch(match["before"])
        left_out = (marker["command"] or "") if marker else ""
        commands = tuple(_commands(match["text"]))
        assert not left_out or left_out in [command.line.split("  #")[0].strip() for command in commands]
        found.append(
            Block(test=marker["test"] if marker else "", commands=commands, left_out=left_out, document=document.name)
        )
    return found


def _commands(text: str) -> list[Command]:
    commands: list[Command] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append(Command(line=line[2:]))
        else:
            assert commands, f"{line!r} is output without a command"
            last = commands.pop()
            commands.append(Command(line=last.line, output=(*last.output, line)))
    return commands


def client_that_builds() -> str:
    """The first docker on PATH that can build: clients from 23 on take a part of its own for it, buildx."""
    clients = [str(path) for folder in os.get_exec_path() if os.access(path := Path(folder, "docker"), os.X_OK)]
    for client in clients:
        version = subprocess.run([client, "--version"], capture_output=True, text=True, check=True).stdout
        buildx = subprocess.run([client, "buildx", "version"], capture_output=True, check=False)
        if buildx.returncode == 0 or int(re.findall(r"version (\d+)", version)[0]) < 23:
            return client
    raise AssertionError(f"no docker client that can build: {clients}")


@dataclass
class Shell:
    """A fresh copy of the repository, in which commands are run as a reader would paste them."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def in_a_copy(cls, folder: Path) -> Shell:
        folder.mkdir()
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy2(path, folder)
            elif path.name not in _NOT_OF_A_CLONE and not path.name.startswith("."):
                shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        (folder / ".venv").symlink_to(ROOT / ".venv")
        # A reader's `docker build` works; here another client may be first on PATH.
        return cls(folder, {"PATH": f"{Path(client_that_builds()).parent}{os.pathsep}{os.environ['PATH']}"})

    def run(self, block: Block, timeout: float = 240) -> str:
        """Every command in turn. Fails unless each exits 0 and prints what the document shows. All that they print."""
        printed = ""
        for command in block.commands:
            if block.left_out and command.line.startswith(block.left_out):
                continue
            done = subprocess.run(
                ["bash", "-c", command.line], cwd=self.folder, env={**os.environ, **self.env}, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"$ {command.line}\n{done.stdout}"
            missing = _missing(command.output, done.stdout)
            assert not missing, f"{block.document} shows {missing!r} below\n$ {command.line}\n{done.stdout}"
            printed += done.stdout
        return printed


def _missing(shown: tuple[str, ...], printed: str) -> str:
    """The first line shown that was not printed, in this order; numbers may differ."""
    rest = iter([_NUMBER.sub("0", line.rstrip()) for line in printed.splitlines()])
    for line in shown:
        if line != "..." and _NUMBER.sub("0", line) not in rest:
            return line
    return ""
