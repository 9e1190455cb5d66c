"""The repeated blocks of a model: what fsdp gathers one at a time, what is recomputed, what is compiled.

A block is a child of a ModuleList, ModuleDict or Sequential that has children of its own and shares its class with a
sibling, as the layers of a transformer or the stages of a residual network do. Containers inside containers are looked
into: a Sequential of blocks is no block. A model can name the classes of its blocks instead, by an attribute
`_no_split_modules` (the convention of Hugging Face) or by the argument `blocks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from moorage.errors import ConfigError

Named = tuple[str, nn.Module]

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_WITHOUT_FORWARD = (nn.ModuleList, nn.ModuleDict)


def find_blocks(model: nn.Module, names: Sequence[str] = ()) -> list[Named]:
    """The blocks of `model` with their names, in order.

    names: classes that are blocks. Raises ConfigError when one of them is nowhere in the model.
    """
    classes = set(names) or set(getattr(model, "_no_split_modules", None) or ())
    if not classes:
        return _apart(model, _repeated(model, whole=True))
    found = _outermost((name, module) for name, module in model.named_modules() if type(module).__name__ in classes)
    missing = set(names) - {type(module).__name__ for _, module in model.named_modules()}
    if missing:
        raise ConfigError(
            f"parallelize(blocks={list(names)}): the model holds no {', '.join(sorted(missing))}",
            fix="give the class names of the model's repeated blocks",
        )
    return _apart(model, found)


def find_groups(model: nn.Module, names: Sequence[str] = ()) -> list[Named]:
    """What fsdp gathers at a time: the blocks, or where there are none the repeated layers of a container."""
    return find_blocks(model, names) or _apart(model, _repeated(model, whole=False))


def _repeated(module: nn.Module, *, whole: bool, prefix: str = "") -> list[Named]:
    """Children of containers that share their class. whole: only those made of other modules."""
    found: list[Named] = []
    elements = list(_elements(module, prefix)) if isinstance(module, _CONTAINERS) else []
    classes = Counter(type(child) for _, child in elements)
    for name, child in elements or [(_join(prefix, name), child) for name, child in module.named_children()]:
        inside = _repeated(child, whole=whole, prefix=name)
        # What is repeated inside of a block belongs to it, unless the block is but a row of blocks.
        is_block = classes[type(child)] > 1 and _has_parameters(child) and (not whole or any(child.children()))
        if is_block and not (isinstance(child, nn.Sequential) and inside):
            found.append((name, child))
        else:
            found.extend(inside)
    return found


def _elements(container: nn.Module, prefix: str) -> Iterator[Named]:
    for name, child in container.named_children():
        if isinstance(child, _WITHOUT_FORWARD):
            yield from _elements(child, _join(prefix, name))
        else:
            yield _join(prefix, name), child


def _outermost(modules: Iterable[Named]) -> list[Named]:
    kept: list[Named] = []
    for name, module in modules:
        if not any(name.startswith(f"{outer}.") for outer, _ in kept):
            kept.append((name, module))
    return kept


def _apart(model: nn.Module, blocks: list[Named]) -> list[Named]:
    """`blocks` without those that share a parameter with the rest of the model, which must be gathered with it."""
    owners: Counter[int] = Counter()
    for module in model.modules():
        owners.update(id(parameter) for parameter in module.parameters(recurse=False))
    kept = []
    for name, block in blocks:
        inside: Counter[int] = Counter()
        for module in block.modules():
            inside.update(id(parameter) for parameter in module.parameters(recurse=False))
        if all(owners[key] == count for key, count in inside.items()):
            kept.append((name, block))
    return kept


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
