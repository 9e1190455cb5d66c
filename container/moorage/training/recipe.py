"""What `serve` needs to build the model again: its factory by name, the arguments, the code, an example of an input."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moorage.errors import ProgramError

CODE = "code"
"""The folder in the model folder that `serve` imports from."""

MOST_BYTES, MOST_FILES = 10 * 2**20, 2000
"""Of code that is shipped: more is data, or an environment."""

_GUARD = re.compile(r"^if\s+__name__\s*==", re.MULTILINE)

log = logging.getLogger("moorage")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """name: MODULE:FUNCTION, as it is imported from `folder`; None where that is an installed package."""

    name: str
    arguments: Mapping[str, Any]
    folder: Path | None

    @classmethod
    def of(cls, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Recipe:
        """Raises ProgramError for what could not be called again: a lambda, one of a function's own, or arguments that
        JSON cannot hold."""
        shown = getattr(factory, "__qualname__", type(factory).__qualname__)
        module = sys.modules.get(getattr(factory, "__module__", ""))
        if module is None or "<" in shown or not hasattr(factory, "__qualname__"):
            raise ProgramError(
                f"run.build({shown}) cannot be repeated by serve",
                why="it is no function or class of a module's own, which could be imported by its name",
                fix="define it at the top level of a file, and give what varies as arguments",
            )
        try:
            json.dumps(arguments, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ProgramError(
                f"run.build({shown}): an argument cannot be written down",
                why=str(error),
                fix="give numbers, texts, lists and dicts; what else it needs is made inside it",
            ) from None
        name, folder = _importable(module)
        return cls(name=f"{name}:{shown}", arguments=dict(arguments), folder=folder)

    def code(self) -> dict[str, bytes]:
        """The Python files of the program's folder, and its requirements.txt, by their paths below CODE.

        None where they are more than is code: `serve` then needs another way to them, which the log says.
        """
        if self.folder is None:
            return {}
        found: dict[str, bytes] = {}
        size = 0
        try:
            for path in _sources(self.folder):
                content = path.read_bytes()
                size += len(content)
                if len(found) >= MOST_FILES or size > MOST_BYTES:
                    raise OSError(f"it is more than {MOST_FILES} files or {MOST_BYTES // 2**20} MB")
                found[f"{CODE}/{path.relative_to(self.folder).as_posix()}"] = content
        except OSError as error:
            # What was trained for weeks is not lost for this.
            log.warning(
                "the code in %s is not put beside the model: %s; serve needs it in the model's folder code, or in its "
                "image", self.folder, error,
            )  # fmt: skip
            return {}
        return found


def _importable(module: ModuleType) -> tuple[str, Path | None]:
    """The module's name for an import, and the folder it is imported from."""
    name, file = module.__name__, getattr(module, "__file__", None)
    if name == "__main__":
        if file is None:
            raise ProgramError(
                "run.build: the program is no file", why="serve imports the factory from it", fix="write it to a file"
            )
        spec = module.__spec__
        name = spec.name.removesuffix(".__main__") if spec else Path(file).stem
        if not _GUARD.search(Path(file).read_text(encoding="utf-8", errors="replace")):
            raise ProgramError(
                f"run.build: {Path(file).name} would train again when serve imports it",
                why="the factory is defined in the program itself, which does not begin by `if __name__ == "
                '"__main__":`',
                fix="put what trains below that line, or the factory into a file of its own",
            )
    root = _root(Path(file).resolve(), name) if file else None
    return name, root if root is not None and root == _program_folder() else None


def _program_folder() -> Path | None:
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None:
        return None
    return _root(Path(file).resolve(), main.__spec__.name.removesuffix(".__main__") if main.__spec__ else "")


def _root(file: Path, name: str) -> Path:
    """The folder from which `file` is imported as `name`."""
    return file.parents[name.count(".") + (file.name == "__init__.py")]


def _sources(folder: Path) -> Iterator[Path]:
    for root, names, files in os.walk(folder):
        names[:] = sorted(
            name for name in names
            if not name.startswith(".") and name != "__pycache__" and not (Path(root, name) / "pyvenv.cfg").exists()
        )  # fmt: skip
        for name in sorted(files):
            wanted = name.endswith(".py") or (name == "requirements.txt" and Path(root) == folder)
            if wanted and Path(root, name).is_file():
                yield Path(root, name)


def example_files(example: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What lies beside the model, and what model.json says of it.

    example: a tensor or array, batch first; several by name; or any value of JSON. Raises ProgramError.
    """
    if isinstance(example, Tensor | np.ndarray):
        array = _array(example)
        file = BytesIO()
        np.save(file, array, allow_pickle=False)
        return {"example.npy": file.getvalue()}, {"file": "example.npy", **_spec(example)}
    if isinstance(example, Mapping) and example and all(isinstance(v, Tensor | np.ndarray) for v in example.values()):
        value: Any = {"inputs": {str(name): _array(part).tolist() for name, part in example.items()}}
        facts: dict[str, Any] = {"inputs": {str(name): _spec(part) for name, part in example.items()}}
    else:
        value, facts = example, {}
    try:
        return {"example.json": json.dumps(value, allow_nan=False).encode()}, {"file": "example.json", **facts}
    except (TypeError, ValueError) as error:
        raise ProgramError(
            "run.finish(example=...): the example cannot be written down",
            why=str(error),
            fix="give a tensor, tensors by name, or what JSON can hold",
        ) from None


def _array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, np.ndarray):
        return value
    tensor = value.detach().cpu()
    return np.asarray((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy())


def _spec(value: Any) -> dict[str, Any]:
    """The first dimension is that of the batch, of any size."""
    shape = list(value.shape)
    if not shape or not math.prod(shape):
        raise ProgramError(
            "run.finish(example=...): the example is empty, or has no dimension",
            why="its first dimension is that of the batch",
            fix="give one instance as a batch: x[:1]",
        )
    dtype = value.dtype if isinstance(value, Tensor) else getattr(torch, value.dtype.name, None)
    if dtype is None:
        raise ProgramError(
            f"run.finish(example=...): torch has no type for {value.dtype}", fix="give an array of numbers"
        )
    return {"dtype": str(dtype).removeprefix("torch."), "shape": [None, *shape[1:]]}
