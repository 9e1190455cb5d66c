"""A working project in an empty folder: a program, its data, a job file, and targets of make."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from moorage.errors import ConfigError

PROJECT = Path(__file__).resolve().parent / "project"
IMAGE = "moorage:cpu"
_WRITTEN = {"gitignore": ".gitignore"}
"""Under another name in the package, where it would be heeded."""
_FILLED = ("moorage.toml", "README.md")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")


def lay_out(folder: Path, *, image: str = IMAGE) -> list[Path]:
    """The files that were made, relative to `folder`, which is made where it is not there.

    Raises ConfigError for a folder with something in it other than .git, and for what is no image's name.
    """
    if not _IMAGE.fullmatch(image):
        raise ConfigError(f"{image!r} is not the name of an image", fix="give one such as moorage:cpu")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in folder.iterdir() if path.name != ".git")
    except OSError as error:
        raise ConfigError(
            f"cannot make a project in {folder}", why=str(error.strerror), fix="name another folder"
        ) from None
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ConfigError(
            f"{folder} is not empty", why=f"there is {there[0]}{more} in it", fix="name a folder that is not there yet"
        )
    made = []
    for source in sorted(path for path in PROJECT.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        name = source.relative_to(PROJECT)
        target = folder / name.with_name(_WRITTEN.get(name.name, name.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if name.name in _FILLED:
            text = target.read_text(encoding="utf-8")
            target.write_text(text.replace("@NAME@", _name(folder)).replace("@IMAGE@", image), encoding="utf-8")
        made.append(target.relative_to(folder))
    return made


def _name(folder: Path) -> str:
    """What a job's name may begin with (CreateTrainingJob)."""
    return re.sub(r"[^A-Za-z0-9]+", "-", folder.resolve().name).strip("-")[:32].strip("-") or "job"
