"""Which program to train with, and the command that starts it.

| looked for, in this order | as |
|---|---|
| `train PROGRAM [ARGS]` | a file of the current folder, or a name in one of the folders below |
| sagemaker_submit_directory | a folder, a tar.gz, or one in S3 (script mode) |
| code/ of the job | /opt/ml/code |
| the channel `code` | /opt/ml/input/data/code |
| /opt/program | baked into an image made FROM ours |

The program is a `.py` file, a module, a `.sh` file or an executable; it is named by sagemaker_program, or is the only
one that can be meant. It must lie inside its code folder, and its argv never passes through a shell.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from moorage.contract import source
from moorage.contract.config import JobConfig
from moorage.contract.fingerprint import fingerprint
from moorage.contract.hyperparameters import arguments
from moorage.contract.secrets import redact
from moorage.errors import ProgramError

BAKED = Path("/opt/program")
USUAL = ("train.py", "main.py")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_WHERE = "put the program there, or name it by sagemaker_program"


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training program, ready to be started.

    argv: the command, never through a shell. env: what it needs beyond the host's environment.
    code: its code folder, first on PYTHONPATH; entry: the program's name in it, such as train.py or pkg.train.
    fingerprint: the same on two hosts exactly when code and command are. description: one line for the log.
    """

    argv: tuple[str, ...] = field(repr=False)
    cwd: Path
    env: Mapping[str, str] = field(repr=False)
    fingerprint: str
    description: str
    code: Path = Path()
    entry: str = ""


def prepare(
    config: JobConfig,
    env: Mapping[str, str],
    argv: Sequence[str] = (),
    *,
    python: str = sys.executable,
    baked: Path = BAKED,
    here: Path | None = None,
    scratch: Path | None = None,
) -> Program:
    """The job's program, fetched and checked. argv: PROGRAM and its ARGS where `train` was given any.

    The hyperparameters come first in its arguments, so that ARGS win. python: the interpreter of the ranks; here: the
    folder that a PROGRAM is relative to, the current one if None; scratch: where an archive is unpacked, the folder of
    temporary files if None, where it stays. Raises ProgramError, and ConfigError for hyperparameters that cannot be
    arguments.
    """
    args = arguments(config.hyperparameters)
    places, submitted = _places(config, env, baked, scratch)
    cwd = None
    if argv:
        name, rest, module = _command_line(argv)
        args, why = (*args, *rest), "named on the command line"
        entry, cwd = _by_hand(name, module, places, submitted, here or Path.cwd())
    else:
        name, setting = source.setting(config, env, "sagemaker_program")
        entry, why = (
            (_first(places, name), f"named by {setting}") if name else (_usual(places), "the one program there")
        )
    _check_syntax(entry)
    code = entry.place.folder
    path = os.pathsep.join(filter(None, (str(code), env.get("PYTHONPATH"))))
    reasons = "; ".join(filter(None, (entry.place.reason, why)))
    return Program(
        argv=(*_command(entry, python), *args),
        cwd=cwd or code,
        env=MappingProxyType({"PYTHONPATH": path}),
        fingerprint=fingerprint(code, (entry.name, *args), leave_out=(config.paths.base,)),
        description=redact(f"{entry.name} in {code} ({reasons})"),
        code=code,
        entry=entry.name,
    )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A folder that holds code, and why it is looked at."""

    folder: Path
    reason: str

    def holds(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.folder)

    def names(self) -> list[str]:
        try:
            return sorted(path.name + "/" * path.is_dir() for path in self.folder.iterdir())
        except OSError as error:
            raise ProgramError(f"cannot read the code folder {self.folder}", why=str(error.strerror)) from None


def _places(config: JobConfig, env: Mapping[str, str], baked: Path, scratch: Path | None) -> tuple[list[_Place], bool]:
    """Every folder that holds code, and whether the job submitted one, which is then the only one."""
    location, setting = source.setting(config, env, "sagemaker_submit_directory")
    if location:
        folder = source.fetch(location, setting, config, env, scratch)
        return [_Place(folder=folder.resolve(), reason=f"submitted by {setting}")], True
    usual = {
        config.paths.code: "the job's code folder",
        config.paths.data / "code": "the channel 'code'",
        baked: "baked into the image",
    }
    there = [_Place(folder=folder.resolve(), reason=reason) for folder, reason in usual.items() if folder.is_dir()]
    # An empty folder says nothing: other toolkits create code/ whether it is used or not.
    return [place for place in there if place.names()], False


@dataclass(frozen=True, kw_only=True)
class _Entry:
    place: _Place
    name: str
    file: Path
    module: bool = False


def _command_line(argv: Sequence[str]) -> tuple[str, tuple[str, ...], bool]:
    """PROGRAM, ARGS and whether PROGRAM is a module, as `-m` says."""
    if argv[0] == "-m" and len(argv) > 1:
        return argv[1], tuple(argv[2:]), True
    if argv[0].startswith("-") or not argv[0]:
        raise ProgramError(
            f"train: {redact(argv[0])!r} is not a program",
            fix="give `train PROGRAM [ARGS]` or `train -m MODULE [ARGS]`",
        )
    return argv[0], tuple(argv[1:]), False


def _by_hand(name: str, module: bool, places: list[_Place], submitted: bool, here: Path) -> tuple[_Entry, Path | None]:
    """The program that a command line means, and the working directory if it is not the code folder."""
    file = here / name
    is_file = not module and os.path.isfile(file)  # noqa: PTH113  (Path.is_file raises for a name that is too long)
    for place in places:
        if is_file and place.holds(file):
            return _require(place, str(file.resolve().relative_to(place.folder))), None
        if submitted and (entry := _find(place, name, module)):
            return entry, None
    if is_file:
        # As Python has it: the program's own folder is the one it imports from; paths in ARGS stay relative to `here`.
        return _require(_Place(folder=file.parent.resolve(), reason=""), file.name), here
    current = _Place(folder=here.resolve(), reason="")
    if _DOTTED.fullmatch(name) and (entry := _find(current, name, module=True)):
        return entry, None
    return _first(places, name, module), None


def _first(places: list[_Place], name: str, module: bool = False) -> _Entry:
    if Path(name).is_absolute():
        places = [place for place in places if place.holds(Path(name))] or places
    for place in places:
        if entry := _find(place, name, module):
            return entry
    raise ProgramError(f"the program {name!r} was not found", why=_found(places), fix=_WHERE)


def _usual(places: list[_Place]) -> _Entry:
    """The program of a job that names none: train.py or main.py, else the only .py of the first folder with code."""
    if not places:
        raise ProgramError("the job has no training program", why=_found(places), fix=_WHERE)
    there = [name for name in places[0].names() if name.endswith(".py") and name not in ("__init__.py", "setup.py")]
    usual = [name for name in USUAL if name in there]
    if len(usual) == 1 or len(there) == 1:
        return _require(places[0], (usual or there)[0])
    what = f"{' and '.join(usual)} could both be it" if usual else f"there is no {' or '.join(USUAL)}"
    raise ProgramError(f"no program is named, and {what}", why=_found(places), fix="name it by sagemaker_program")


def _require(place: _Place, name: str) -> _Entry:
    entry = _find(place, name)
    if entry is None:
        raise ProgramError(f"the program {name!r} was not found", why=_found([place]), fix=_WHERE)
    return entry


def _find(place: _Place, name: str, module: bool = False) -> _Entry | None:
    """`name` in a folder: a file, or a module by its dotted name. Raises ProgramError when it lies outside."""
    code = place.folder
    if not module and (file := _inside(code, name)):
        return _Entry(place=place, name=str(file.relative_to(code)), file=file)
    if not _DOTTED.fullmatch(name) or name.endswith((".py", ".sh")):
        return None
    path = name.replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__main__.py"):
        if file := _inside(code, candidate):
            return _Entry(place=place, name=name, file=file, module=True)
    return None


def _inside(code: Path, name: str) -> Path | None:
    """The path of `name`, not resolved, when it is a file of `code`, which is resolved."""
    path = code / name
    leads_out = os.path.lexists(path) and not path.resolve().is_relative_to(code)
    if leads_out or ".." in path.parts or not path.is_relative_to(code):
        raise ProgramError(
            f"the program {name!r} lies outside the code folder {code}",
            why="it has '..', is absolute, or is a link that leads out",
            fix="name a file inside the code folder, such as train.py or src/train.py",
        )
    return path if os.path.isfile(path) else None  # noqa: PTH113  (Path.is_file raises for a name that is too long)


def _found(places: list[_Place], limit: int = 12) -> str:
    """What is there instead, for an error."""
    if not places:
        return "there is no code in the job's code folder, the channel 'code' or /opt/program"
    lists = []
    for place in places:
        names = place.names()
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        lists.append(f"{place.folder} holds {', '.join(names[:limit]) or 'nothing'}{more}")
    return "; ".join(lists)


def _check_syntax(entry: _Entry) -> None:
    """A syntax error is found here, once, before any rank starts."""
    if entry.file.suffix != ".py":
        return
    try:
        text = entry.file.read_bytes()
    except OSError as error:
        raise ProgramError(f"cannot read the program {entry.file}", why=str(error.strerror)) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, str(entry.file), "exec", dont_inherit=True)
    except SyntaxError as error:
        line = redact((error.text or "").strip())
        raise ProgramError(
            f"the program {entry.name} has a syntax error in line {error.lineno}: {error.msg}",
            why=f"the line is: {line}" if line else "",
            fix=f"run `python -m py_compile {entry.file.name}` before the job is sent",
        ) from None
    except (ValueError, RecursionError) as error:
        raise ProgramError(f"the program {entry.name} cannot be compiled", why=str(error)) from None


def _command(entry: _Entry, python: str) -> tuple[str, ...]:
    if entry.module:
        return (python, "-m", entry.name)
    if entry.file.suffix == ".py":
        return (python, str(entry.file))
    if entry.file.suffix == ".sh":
        return ("bash", str(entry.file))
    if not os.access(entry.file, os.X_OK):
        raise ProgramError(
            f"the program {entry.name!r} is not executable",
            why="a program that is neither .py nor .sh is started as it is",
            fix=f"chmod +x {entry.name} before it is packed, or give it its suffix",
        )
    return (str(entry.file),)
