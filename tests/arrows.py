"""Which package of the toolkit may import which, checked on the source without running it.

    python tests/arrows.py [FOLDER OF THE PACKAGE]

PID 1 must start fast and without torch, and the contract must not know who uses it; an import in the wrong direction
undoes both without a test failing. Prints one line for each such import and exits 1.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "moorage"
HOME = Path(__file__).resolve().parent.parent / "container" / PACKAGE

ARROWS: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "contract": frozenset({"errors"}),
    "cluster": frozenset({"errors", "contract"}),
    "processes": frozenset({"errors"}),
    "launch": frozenset({"errors", "contract", "cluster", "processes"}),
    "checkpoint": frozenset({"errors", "contract"}),
    "training": frozenset({"errors", "contract", "checkpoint"}),
    "serving": frozenset({"errors", "contract", "cluster", "processes"}),
    "rehearsal": frozenset({"errors", "contract"}),
    # plan asks the arithmetic that the ranks ask: training's modules without torch.
    "cloud": frozenset({"errors", "contract", "rehearsal", "training"}),
}
"""What each part may import, beside itself and the package's version."""

FACADES = frozenset({"__init__", "cli"})
"""They may reach every part, but only when asked: inside a function. Errors and contract they may load at once."""

LIGHT = frozenset({"xxhash"})
"""Outside the standard library, but one small C file: loaded in a millisecond."""

COMMAND = frozenset({"typer"})
"""What `cli` is written in: an option's type is an annotation, read as the module is loaded. 40 ms, never in PID 1."""

WITHOUT_TORCH = frozenset({"errors", "contract", "cluster", "processes", "launch"})
"""What PID 1 is made of."""

TORCH = frozenset({"torch", "torchdata", "torchvision", "accelerate", "transformers", "lightning"})
"""Import torch, or may."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module, and how it is imported."""

    module: str
    line: int
    lazy: bool
    """Inside a function: nothing happens until it is called."""
    for_types: bool
    """Under `if TYPE_CHECKING`: never happens."""


class _Imports(ast.NodeVisitor):
    def __init__(self, package: str) -> None:
        self.package = package
        self.found: list[Import] = []
        self._depth = 0
        self._types = 0

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level:
            base = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            module = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            # `from moorage import launch` names a part, not a value.
            self._add(f"{module}.{alias.name}" if module == PACKAGE else module, node.lineno)

    def visit_If(self, node: ast.If) -> None:
        name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", "")
        types = name == "TYPE_CHECKING"
        self._types += types
        for child in node.body:
            self.visit(child)
        self._types -= types
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def _add(self, module: str, line: int) -> None:
        self.found.append(Import(module=module, line=line, lazy=self._depth > 0, for_types=self._types > 0))


def imports_of(file: Path, home: Path) -> list[Import]:
    parts = (PACKAGE, *file.relative_to(home).with_suffix("").parts)
    visitor = _Imports(".".join(parts[:-1]))
    visitor.visit(ast.parse(file.read_text(), str(file)))
    return visitor.found


def complaints(home: Path = HOME) -> Iterator[str]:
    """One line for each import that no arrow allows, as `FILE:LINE: what is wrong`."""
    for file in sorted(home.rglob("*.py")):
        part = file.relative_to(home).with_suffix("").parts[0]
        if part not in ARROWS and part not in FACADES:
            yield f"{file}:1: {part} is not a part that tests/arrows.py knows: say there what it may import"
            continue
        for found in imports_of(file, home):
            wrong = _wrong(part, found)
            if wrong:
                yield f"{file}:{found.line}: {wrong}"


def _wrong(part: str, found: Import) -> str:
    top, _, rest = found.module.partition(".")
    if top == PACKAGE:
        return _wrong_arrow(part, found, rest.split(".")[0])
    if part in WITHOUT_TORCH and top in TORCH:
        return f"{part} imports {found.module}: PID 1 is free of torch"
    deferred = found.lazy or found.for_types
    light = LIGHT | (COMMAND if part == "cli" else frozenset())
    if part in WITHOUT_TORCH | FACADES and top not in sys.stdlib_module_names | light and not deferred:
        return f"{part} imports {found.module} as it is loaded, which slows PID 1: do it in the function that needs it"
    return ""


def _wrong_arrow(part: str, found: Import, target: str) -> str:
    if target in {part, "", "__version__"} or (part in FACADES and target in {"errors", "contract"}):
        return ""
    if part in FACADES:
        deferred = found.lazy or found.for_types
        return "" if deferred else f"{part} imports {found.module} as it is loaded: import it in a function"
    if target in ARROWS[part]:
        return ""
    allowed = ", ".join(sorted(ARROWS[part])) or "nothing of the toolkit"
    return f"{part} imports {found.module}: {part} may use {allowed}"


def main(argv: list[str]) -> int:
    found = list(complaints(Path(argv[0]) if argv else HOME))
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
