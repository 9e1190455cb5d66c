"""The functions of code/inference.py, as people write them for AWS's containers.

    model_fn(model_dir)                                    -> model
    input_fn(data, content_type)                           -> input       data: str where it is JSON or CSV, else bytes
    predict_fn(input, model)                               -> prediction
    output_fn(prediction, accept)                          -> body, or (body, content type)
    transform_fn(model, data, content_type, accept)        -> the same; in place of the three above
    pre_model_fn(model_dir), model_warmup_fn(model_dir, model)
    collate_fn(inputs) -> input, split_fn(prediction, sizes) -> predictions      for batches

Each but the last two may take one more argument, the context. What is left out is done by default. As AWS's
sagemaker-inference toolkit has it; there any further argument is the context, here one with a default is left alone
unless it is called `context`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CoroutineType, ModuleType
from typing import Any

from moorage.errors import ModelError
from moorage.serving.importing import import_file, import_module
from moorage.serving.streams import finish

HOOKS = {
    "model_fn": ("model_dir",),
    "input_fn": ("data", "content_type"),
    "predict_fn": ("input", "model"),
    "output_fn": ("prediction", "accept"),
    "transform_fn": ("model", "data", "content_type", "accept"),
    "pre_model_fn": ("model_dir",),
    "model_warmup_fn": ("model_dir", "model"),
    "collate_fn": ("inputs",),
    "split_fn": ("prediction", "sizes"),
}
"""What each is given, in this order."""

_WITHOUT_CONTEXT = frozenset({"collate_fn", "split_fn"})

Function = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Handlers:
    """The functions that were found, each called with its arguments and `context=`, which those that do not take it
    are not given. Async ones are waited for. asks: whether any takes the context."""

    file: str
    model_fn: Function | None = None
    input_fn: Function | None = None
    predict_fn: Function | None = None
    output_fn: Function | None = None
    transform_fn: Function | None = None
    pre_model_fn: Function | None = None
    model_warmup_fn: Function | None = None
    collate_fn: Function | None = None
    split_fn: Function | None = None
    asks: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in HOOKS if getattr(self, name) is not None)

    def __str__(self) -> str:
        return f"{', '.join(self.names)} of {self.file}"


def find(code: Path | None, named: str, *, default: str = "inference.py") -> Handlers | None:
    """The handlers in the folder `code`: of the file or module `named`, else of `default` where it is there.

    Raises ModelError when the one that is named is not there, has none, or cannot be imported.
    """
    module = _named(code, named) if named else _default(code, default)
    if module is None:
        return None
    handlers = read(module)
    if handlers.names:
        return handlers
    if not named:
        return None
    raise ModelError(
        f"{named} has no handler",
        why=f"it has none of {', '.join(HOOKS)}",
        fix="write at least model_fn, or let SAGEMAKER_PROGRAM or MOORAGE_HANDLER name the file that has them",
    )


def read(module: ModuleType) -> Handlers:
    """Raises ModelError for a function that cannot be called as it will be."""
    file = Path(module.__file__).name if module.__file__ else module.__name__
    found = {name: function for name in HOOKS if callable(function := getattr(module, name, None))}
    if "transform_fn" in found and (others := found.keys() & {"input_fn", "predict_fn", "output_fn"}):
        raise ModelError(
            f"{file} has transform_fn and {', '.join(sorted(others))}",
            why="transform_fn does what the others do, so that it is not clear which is meant",
            fix="leave one or the other out",
        )
    if ("collate_fn" in found) != ("split_fn" in found):
        raise ModelError(
            f"{file} has one of collate_fn and split_fn",
            why="what the first puts together, the second takes apart",
            fix="write both, or none",
        )
    takes = {name: _takes_context(name, function, file) for name, function in found.items()}
    bound = {name: _bound(function, takes[name]) for name, function in found.items()}
    return Handlers(file=file, asks=any(takes.values()), **bound)


def _named(code: Path | None, named: str) -> ModuleType:
    folder = code or Path()
    path = folder / named
    if named.endswith(".py"):
        if code is None or not path.resolve().is_relative_to(code.resolve()) or not path.is_file():
            raise ModelError(
                f"there is no handler {named}",
                why=f"MOORAGE_HANDLER or SAGEMAKER_PROGRAM names it; it was looked for in {code or 'the folder code'}",
                fix="put it into the folder code of the model, or correct the name",
            )
        return import_file(path)
    beside = folder / f"{named}.py"
    if code is not None and beside.is_file():
        return import_file(beside)
    return import_module(named, str(code or "the folder code of the model, which is not there"))


def _default(code: Path | None, default: str) -> ModuleType | None:
    return import_file(code / default) if code is not None and (code / default).is_file() else None


def _takes_context(name: str, function: Function, file: str) -> bool:
    given = HOOKS[name]
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # one that is not written in Python
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    spread = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    further = positional[len(given) :]
    takes = name not in _WITHOUT_CONTEXT and (
        len(required) == len(given) + 1 or any(p.name == "context" for p in further[:1])
    )
    if len(required) > len(given) + takes or (len(positional) < len(given) and not spread):
        shown = ", ".join(given) + ("" if name in _WITHOUT_CONTEXT else ", and context if it takes it")
        raise ModelError(
            f"{name} of {file} takes {len(positional)} arguments",
            why=f"it is called with {shown}",
            fix="give it these, in this order; any name will do",
        )
    return takes


def _bound(function: Function, takes_context: bool) -> Function:
    def call(*given: Any, context: Any = None) -> Any:
        result = function(*given, context) if takes_context else function(*given)
        return finish(result) if type(result) is CoroutineType else result

    return call
