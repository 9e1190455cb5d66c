"""Change what a module's forward does, and nothing else about it: class name, parameters and state_dict stay.

An attribute `forward` on the instance would follow a copy.deepcopy (an averaged model, say) and compute with the
weights of the original; a subclass does not. It is what fully_shard does as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

Forward = Callable[..., Any]


def override_forward(modules: list[nn.Module], around: Callable[[Forward], Forward]) -> None:
    """Make each module's forward `around(forward)`. A pickle or a copy of a module is of its own class again."""
    classes: dict[type[nn.Module], type[nn.Module]] = {}  # one for all blocks of a class, so that they compile once
    for module in modules:
        if "forward" in vars(module):
            # A library has set forward on the instance, which hides that of any class.
            vars(module)["forward"] = around(module.forward)
            continue
        base = type(module)
        if base not in classes:
            classes[base] = _subclass(base, around(base.forward))
        module.__class__ = classes[base]


def _subclass(base: type[nn.Module], forward: Forward) -> type[nn.Module]:
    def reduce(self: nn.Module, protocol: Any) -> Any:
        reduced = base.__reduce_ex__(self, protocol)
        assert isinstance(reduced, tuple)
        return (base.__new__, (base,), *reduced[2:])

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    body = {"forward": functools.wraps(base.forward)(forward), "__reduce_ex__": reduce}
    changed = type(base.__name__, (base,), names | body)
    return changed
