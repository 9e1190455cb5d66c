"""The user's code, imported: what is not there, and what fails inside it, are told apart."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from moorage.contract.secrets import redact
from moorage.errors import ModelError

log = logging.getLogger("moorage")


def make_importable(folders: Sequence[Path]) -> None:
    """Put `folders` first on sys.path, as Python does with the folder of a program."""
    texts = [str(folder) for folder in folders]
    sys.path[:] = [*texts, *(entry for entry in sys.path if entry not in texts)]


def import_file(path: Path) -> ModuleType:
    """The module in a file, under the file's name. Raises ModelError."""
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is no Python file", fix="name a file that ends in .py, or a module")
    module = importlib.util.module_from_spec(spec)
    # Before it runs, as import does: what is pickled, or a dataclass, looks its module up.
    sys.modules[name] = module
    with _failing_inside(str(path), path.name):
        spec.loader.exec_module(module)
    return module


def import_module(name: str, where: str) -> ModuleType:
    """A module by its dotted name. where: it was looked for, for the error. Raises ModelError."""
    with _failing_inside(name, name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A missing parent counts as the module missing; any other was imported by it.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            missing = ModelError(
                f"there is no module {name}",
                why=f"it was looked for in {where}, and among the installed packages",
                fix="put it there, or correct the name",
            )
    raise missing


def resolve(name: str, where: str) -> Callable[..., Any]:
    """`train:build_model`, as model.json has it. Raises ModelError."""
    module_name, _, path = name.partition(":")
    found: Any = import_module(module_name, where)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not path or not callable(found):
        raise ModelError(
            f"{module_name} has no function or class {path or name!r}",
            why="model.json names it as the factory of the model",
            fix="ship the code that the model was trained with",
        )
    return found  # type: ignore[no-any-return]


@contextmanager
def calling(what: str) -> Iterator[None]:
    """A call of the user's code while the model is loaded: any failure is a ModelError, its traceback in the log."""
    try:
        yield
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may fail in any way
        log.error("%s failed:\n%s", what, users_traceback(error))
        raise ModelError(
            f"{what} failed: {_told(error)}", why=_place(error), fix="the traceback is in the log"
        ) from None


@contextmanager
def _failing_inside(name: str, short: str) -> Iterator[None]:
    """The model folder is read-only, and may lie where its owner wants no __pycache__."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    except ModuleNotFoundError as error:
        log.error("importing %s failed:\n%s", name, users_traceback(error))
        raise ModelError(
            f"{short} imports {error.name}, which is not installed",
            why=_place(error),
            fix="name its package in requirements.txt beside it, or bake it into the image",
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may fail in any way
        log.error("importing %s failed:\n%s", name, users_traceback(error))
        raise ModelError(
            f"{short} was found, and failed as it was imported: {_told(error)}",
            why=_place(error),
            fix="the traceback is in the log",
        ) from None
    finally:
        sys.dont_write_bytecode = before


def users_traceback(error: BaseException, known: Sequence[str] = ()) -> str:
    """Without our own frames and import's at its head, and without secrets."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    frames = traceback.format_exception(type(error), error, trace)
    return redact("".join(frames), known).rstrip()


def _is_ours(file: str) -> bool:
    return file.startswith((str(Path(__file__).parent), "<frozen importlib"))


def _told(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ended the process, with code {error.code}"
    lines = redact(str(error)).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _place(error: BaseException) -> str:
    """The last place in a traceback that is not a library's: the line that its author knows."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_ours(f.filename)]
    own = [f for f in frames if "site-packages" not in f.filename and "/lib/python" not in f.filename]
    return f"{(own or frames)[-1].filename}, line {(own or frames)[-1].lineno}" if frames else ""
