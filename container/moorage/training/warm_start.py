"""What a job without a checkpoint of its own begins with: another job's checkpoint, or the model of a folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from moorage.checkpoint.checkpointer import Checkpointer
from moorage.checkpoint.manifest import Manifest
from moorage.checkpoint.modules import read_module, write_derived
from moorage.checkpoint.other import Other, holds_checkpoints
from moorage.checkpoint.state import Differences, restore, template
from moorage.contract.ledger import Ledger
from moorage.errors import CheckpointError, ConfigError
from moorage.training.export import WEIGHTS
from moorage.training.initialise import write
from moorage.training.tensorfile import DTYPES

log = logging.getLogger("moorage")

_TORCH = {name: dtype for dtype, name in DTYPES.items()}


class WarmStart:
    """One way to begin, for all that the program tracks. Collective throughout.

    folder: that of checkpoints, of one of them, or of a model. what: weights, or all. Raises CheckpointError when it
    holds nothing to begin with, ConfigError when it does not hold what is asked for.
    """

    def __init__(self, folder: Path, what: str, checkpointer: Checkpointer, ledger: Ledger) -> None:
        self._folder, self._what, self._checkpointer, self._ledger = folder, what, checkpointer, ledger
        kind = checkpointer.agreed(f"warm_start {folder} cannot be used", lambda: _kind(folder))
        self._other: Other | None = checkpointer.other(folder) if kind == "checkpoint" else None
        if what == "all" and self._other is None:
            raise ConfigError(
                f"warm_start {folder} is a model, which has weights only",
                why="warm_start_what is all, which takes optimizer, schedule and place in the data from a checkpoint",
                fix="give the folder of a checkpoint, or leave warm_start_what at weights",
            )

    @property
    def other(self) -> Other | None:
        """The checkpoint to go on from as if it were the job's own; None when training begins at step 0."""
        return self._other if self._what == "all" else None

    def load(self, things: Mapping[str, Any], among: Mapping[str, Any], *, optional: bool = False) -> Manifest | None:
        """Begin with what is there for `things`. The manifest when training goes on from it.

        among: all that is tracked. optional: things that a checkpoint may lack; they stay as they are.
        Raises CheckpointError listing the names and shapes that do not fit.
        """
        started = time.monotonic()
        manifest = self._other.manifest if self._other else None
        modules = {name: thing for name, thing in things.items() if isinstance(thing, nn.Module)}
        wanted = modules if self._what == "weights" else things
        if not wanted or (optional and manifest is not None and not things.keys() <= manifest.objects.keys()):
            return manifest if self.other else None
        try:
            if self._other is not None:
                source = self._load_checkpoint(self._other, wanted, among)
            else:
                source = self._load_model(modules, alone=sum(isinstance(t, nn.Module) for t in among.values()) == 1)
        except CheckpointError as error:
            raise CheckpointError(
                f"warm_start {self._folder} does not fit the program",
                why=error.why or error.what,
                fix="begin with what a program of the same model wrote, under the same names in run.track(...)",
            ) from error
        seconds = time.monotonic() - started
        log.info("warm start: %s of %s from %s, loaded in %.2f s",
                 "weights" if self._what == "weights" else "all", ", ".join(wanted), source, seconds)  # fmt: skip
        self._ledger.write("warm-start", source=source, what=self._what, seconds=round(seconds, 3))
        return manifest if self.other else None

    def _load_checkpoint(self, other: Other, wanted: Mapping[str, Any], among: Mapping[str, Any]) -> str:
        manifest = other.manifest
        tensors = template(
            wanted, self._checkpointer.stored(manifest, other.source), manifest.objects, among=dict(among)
        )
        self._checkpointer.load(manifest, tensors, other.source)
        restore(wanted, tensors, manifest.objects, among=dict(among))
        return f"{other.source} (epoch {manifest.epoch}, {manifest.world_size} ranks)"

    def _load_model(self, modules: Mapping[str, nn.Module], *, alone: bool) -> str:
        for name, module in modules.items():
            own = self._folder / name / WEIGHTS
            path = own if own.exists() or not alone else self._folder / WEIGHTS
            # Alike on all ranks: what one cannot read, none goes on with.
            self._checkpointer.agreed(f"{path} cannot be loaded", lambda p=path, m=module: load_weights(p, m))  # type: ignore[misc]
        return str(self._folder)


def _kind(folder: Path) -> str:
    try:
        there = sorted(entry.name for entry in folder.iterdir())
        if holds_checkpoints(folder):
            return "checkpoint"
        if (folder / WEIGHTS).exists() or any((folder / name / WEIGHTS).exists() for name in there):
            return "model"
    except OSError as error:
        raise CheckpointError(
            f"warm_start {folder} cannot be read", why=str(error.strerror), fix="check the path or the channel"
        ) from None
    packed = next((name for name in there if name.endswith((".tar.gz", ".tgz"))), "")
    raise CheckpointError(
        f"warm_start {folder} holds neither checkpoints nor {WEIGHTS}",
        why=f"it holds {', '.join(there[:5]) or 'nothing'}",
        fix=f"unpack {packed} and give the unpacked folder as the channel" if packed else "name another folder",
    )


def load_weights(path: Path, module: nn.Module) -> None:
    """Copy the tensors of a safetensors file into a module, sharded or not; floats may change their width.

    One of several names of a shared tensor is enough. Raises CheckpointError listing what does not fit, before anything
    is changed.
    """
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            state = read_module(module)
            names = set(file.keys())
            wanted: dict[str, Tensor] = dict(state.tensors)
            for alias, name in state.shared.items():
                if name not in names and alias in names:
                    wanted[alias] = wanted.pop(name, state.tensors[name])
            derived = {name: value for name, value in state.derived.items() if isinstance(value, Tensor)}
            _check(file, names, wanted | derived, names - state.shared.keys())
            for name, target in wanted.items():
                write(target, file.get_tensor(name).to(target.dtype))
            write_derived(module, state, {name: file.get_tensor(name) for name in derived})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read", why=str(error)) from None


def _check(file: Any, names: set[str], wanted: Mapping[str, Tensor], unshared: set[str]) -> None:
    differences = Differences(where="the file")
    differences.missing = sorted(wanted.keys() - names)
    differences.unexpected = sorted(unshared - wanted.keys())
    for name in sorted(wanted.keys() & names):
        target, stored = wanted[name], file.get_slice(name)
        shape, dtype = list(stored.get_shape()), _TORCH.get(stored.get_dtype())
        if shape != list(target.shape):
            differences.different.append(f"{name} is {list(target.shape)}, in the file {shape}")
        elif dtype is None or dtype.is_floating_point != target.dtype.is_floating_point:
            differences.different.append(f"{name} is {target.dtype}, in the file {stored.get_dtype()}")
    differences.raise_any()
