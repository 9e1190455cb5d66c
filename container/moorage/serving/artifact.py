"""What lies in a model folder: found by looking, without loading any of it, so that the choice can be said and tested.

| kind | file | served by itself |
|---|---|---|
| factory | model.safetensors, or a state dict in model.pt, and model.json that names how to build the model | yes |
| exported | a .pt2 of torch.export | yes |
| script | a .pt or .pth of TorchScript | yes |
| pickle | another .pt or .pth | with the setting unsafe_pickle, or by model_fn |
| weights | .safetensors alone | by model_fn |
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from moorage.errors import ModelError

WEIGHTS, FACTS = "model.safetensors", "model.json"
EXAMPLES = ("example.npy", "example.json")


class Kind(StrEnum):
    """In the order in which they are chosen."""

    FACTORY = "weights and the factory of model.json"
    EXPORTED = "a program of torch.export"
    SCRIPT = "TorchScript"
    PICKLE = "a pickle"
    WEIGHTS = "weights alone"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One way to get a model."""

    kind: Kind
    file: Path

    def __str__(self) -> str:
        return f"{self.file.name} ({self.kind})"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """facts: of model.json, empty where there is none. code: the folder with Python files; None if there is none.
    example: its file. found: in the order of choice. names: all that lies in the folder."""

    folder: Path
    facts: Mapping[str, Any] = field(repr=False)
    code: Path | None
    example: Path | None
    found: tuple[Found, ...]
    names: tuple[str, ...]

    @property
    def import_from(self) -> tuple[Path, ...]:
        """The folders that the code imports from, first one first."""
        if self.code is None:
            return ()
        recorded = self.facts.get("import_from") or ["."]
        folders = [(self.code / str(name)).resolve() for name in recorded]
        inside = [folder for folder in folders if folder.is_relative_to(self.code.resolve())]
        return tuple(dict.fromkeys([*inside, self.code.resolve()]))


def read(folder: Path, env: Mapping[str, str] | None = None) -> Artifact:
    """env: SAGEMAKER_SUBMIT_DIRECTORY may name where the code is. Raises ModelError."""
    try:
        names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    except OSError as error:
        raise ModelError(
            f"the model folder {folder} cannot be read", why=str(error.strerror), fix="mount or name another folder"
        ) from None
    facts = _facts(folder / FACTS)
    examples = [folder / name for name in EXAMPLES if (folder / name).is_file()]
    return Artifact(
        folder=folder,
        facts=facts,
        code=code_folder(folder, env or {}),
        example=examples[0] if examples else None,
        found=tuple(sorted(_look(folder, facts), key=lambda found: list(Kind).index(found.kind))),
        names=tuple(names),
    )


def code_folder(folder: Path, env: Mapping[str, str]) -> Path | None:
    """The folder code of the model; else what SAGEMAKER_SUBMIT_DIRECTORY names, where that is on this machine."""
    code = folder / "code"
    if code.is_dir():
        return code
    location = env.get("SAGEMAKER_SUBMIT_DIRECTORY", "")
    path = Path(unquote(urlsplit(location).path) if location.startswith("file://") else location)
    return path if location and path.is_dir() else None


def choose(artifact: Artifact, *, unsafe_pickle: bool) -> tuple[Found, str]:
    """The model to load without a model_fn, and why that one. Raises ModelError, listing what is there."""
    usable = [found for found in artifact.found if _serves_alone(found.kind, unsafe_pickle)]
    if not usable:
        raise _nothing(artifact)
    best = [found for found in usable if found.kind == usable[0].kind]
    named = [found for found in best if found.file.stem == "model"]
    if len(best) > 1 and len(named) != 1:
        raise ModelError(
            f"{artifact.folder} holds {len(best)} models: {', '.join(found.file.name for found in best)}",
            why="none of them has the name that would be taken, model" + best[0].file.suffix,
            fix="keep one, name it so, or let model_fn in code/inference.py load what it wants",
        )
    chosen = (named or best)[0]
    others = [str(found) for found in artifact.found if found is not chosen]
    why = f"it comes before {', '.join(others)}" if others else "the one model there"
    return chosen, why


def _serves_alone(kind: Kind, unsafe_pickle: bool) -> bool:
    return kind in (Kind.FACTORY, Kind.EXPORTED, Kind.SCRIPT) or (kind is Kind.PICKLE and unsafe_pickle)


def _look(folder: Path, facts: Mapping[str, Any]) -> Iterator[Found]:
    factory = isinstance(facts.get("factory"), Mapping)
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        if path.suffix == ".safetensors":
            whole = factory and path.name == WEIGHTS
            yield Found(kind=Kind.FACTORY if whole else Kind.WEIGHTS, file=path)
        elif path.suffix in (".pt2", ".pt", ".pth"):
            kind = _kind(path)
            if kind is Kind.PICKLE and factory and path.stem == "model" and not (folder / WEIGHTS).exists():
                kind = Kind.FACTORY
            yield Found(kind=kind, file=path)


def _kind(path: Path) -> Kind:
    """By what is in the file: its name says little."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return Kind.PICKLE
    if "constants.pkl" in inside:
        return Kind.SCRIPT
    return Kind.EXPORTED if {"archive_format", "models/model.json"} & inside else Kind.PICKLE


def _facts(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read", why=str(error), fix="write it anew, or remove it") from None
    if not isinstance(facts, dict):
        raise ModelError(f"{path} holds no object", why="run.finish() writes one", fix="write it anew, or remove it")
    return facts


def _nothing(artifact: Artifact) -> ModelError:
    there = ", ".join(str(found) for found in artifact.found)
    others = [name for name in artifact.names if name not in {found.file.name for found in artifact.found}]
    lists = "; ".join(filter(None, (there, _listed(others))))
    return ModelError(
        f"nothing in {artifact.folder} can be served by itself",
        why=f"it holds {lists or 'nothing'}" + _hint(artifact),
        fix="what serves is a model of run.build() and run.finish(), a .pt2 of torch.export, TorchScript, or any file "
        "with a code/inference.py whose model_fn loads it",
    )


def _hint(artifact: Artifact) -> str:
    packed = next((name for name in artifact.names if name.endswith((".tar.gz", ".tgz"))), "")
    if packed:
        return f"; {packed} has to be unpacked first"
    below = [path.parent.name for path in sorted(artifact.folder.glob(f"*/{FACTS}"))]
    if below:
        return f"; {', '.join(below)} is a model folder itself: serve that"
    if any(found.kind is Kind.PICKLE for found in artifact.found):
        return "; a pickle of a whole model is loaded if MOORAGE_UNSAFE_PICKLE is true, which lets it run any code"
    if any(found.kind is Kind.WEIGHTS for found in artifact.found):
        return "; nothing says which model the weights are of"
    return ""


def _listed(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
