"""What an image's size is made of. Run by image/size in the image itself, with the engine's word on its layers.

python3 - IMAGE VARIANT BYTES [--json], and `docker history`'s JSON lines in HISTORY.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

BUDGETS = {"cpu": 1.25e9, "cuda": 5.6e9}
"""Bytes, unpacked, by variant."""

LAYERS = {
    "COPY /venv ": "venv: torch and all packages",
    "COPY /app ": "moorage",
    "g++": "compiler, for torch.compile (COMPILER=0 leaves it out)",
    "install-efa": "EFA",
    "missing python3": "Python and certificates, where the base has none",
    "libcudart": "CUDA's links",
}
"""What tells a layer of the Dockerfile, by its command."""

LARGEST = 10


def layers(history: str) -> list[dict[str, Any]]:
    """The layers that hold something, the last first. What is below ours is the base."""
    found = []
    for step in map(json.loads, history.splitlines()):
        command = step["CreatedBy"]
        name = next((name for word, name in LAYERS.items() if word in command), "")
        ours = bool(name) or "buildkit" in (step.get("Comment") or "")
        found.append({"name": name or (command[:60] if ours else "base"), "bytes": int(step["Size"])})
    return [layer for layer in found if layer["bytes"]]


def packages() -> list[dict[str, Any]]:
    """Every package, the largest first, with its bytecode."""
    found = []
    for package in importlib.metadata.distributions():
        files = {Path(str(package.locate_file(name))) for name in package.files or ()}
        files |= {Path(importlib.util.cache_from_source(str(path))) for path in files if path.suffix == ".py"}
        size = sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())
        found.append({"name": package.metadata["Name"], "version": package.version, "bytes": size})
    return sorted(found, key=lambda package: package["bytes"], reverse=True)


def megabytes(size: float) -> str:
    return f"{size / 1e6:9.1f} MB"


def table(report: dict[str, Any]) -> str:
    lines = [f"layers of {report['image']}, the last first"]
    lines += [f"  {megabytes(layer['bytes'])}  {layer['name']}" for layer in report["layers"]]
    lines += ["largest packages"]
    lines += [f"  {megabytes(one['bytes'])}  {one['name']} {one['version']}" for one in report["packages"]]
    lines += [f"  {megabytes(report['other_packages'])}  {report['num_other_packages']} others"]
    share = report["bytes"] / report["budget"]
    verdict = "within it" if share <= 1 else "OVER IT"
    lines += [f"total {report['bytes'] / 1e9:.2f} GB of {report['budget'] / 1e9:.2f} GB ({share:.0%}): {verdict}"]
    return "\n".join(lines)


def main(image: str, variant: str, total: str, *options: str) -> int:
    every = packages()
    report = {
        "image": image,
        "variant": variant,
        "bytes": int(total),
        "budget": BUDGETS[variant],
        "layers": layers(os.environ["HISTORY"]),
        "packages": every[:LARGEST],
        "num_other_packages": len(every[LARGEST:]),
        "other_packages": sum(package["bytes"] for package in every[LARGEST:]),
    }
    report["compiler"] = sum(layer["bytes"] for layer in report["layers"] if layer["name"].startswith("compiler"))
    print(json.dumps(report, indent=2) if "--json" in options else table(report))
    return 0


sys.exit(main(*sys.argv[1:]))
