"""Less memory and fewer kernels for the blocks of a model: activation checkpointing and torch.compile."""

from __future__ import annotations

import functools
import importlib.util
import logging
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moorage.training.override import Forward, override_forward

log = logging.getLogger("moorage")

COMPILERS = ("c++", "g++", "gcc", "clang++", "cc")


def recompute(blocks: list[nn.Module]) -> list[str]:
    """Keep the inputs of each block only, and compute its activations again in the backward pass, with the same random
    numbers. Says what was done."""
    if not blocks:
        log.warning(
            "activation_checkpointing has no effect: the model has no repeated blocks; name their classes in "
            "parallelize(blocks=...)"
        )
        return []
    override_forward(blocks, _recomputed)
    return [f"{len(blocks)} blocks recomputed"]


def _recomputed(forward: Forward) -> Forward:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)

    return run


def compile_blocks(model: nn.Module, blocks: list[nn.Module], device: torch.device) -> list[str]:
    """Compile each block in place, or the model where it has none; names and classes stay. Says what was done.

    One by one the blocks of a class share their code, and their gradients are reduced while others are computed.
    """
    missing = missing_for_compile(device)
    if missing:
        log.warning("compile has no effect: torch.compile needs %s here", missing)
        return []
    for module in blocks or [model]:
        _compile(module)
    return [f"{len(blocks)} blocks compiled" if blocks else "compiled"]


def _compile(module: nn.Module) -> None:
    """In place. torch.compile skips frames of torch's own modules, so a Sequential needs one of ours around it: seen
    with torch 2.13, where `Sequential.compile()` compiles nothing and does not say so.
    """
    if not type(module).forward.__module__.startswith("torch."):
        module.compile()
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    module._compiled_call_impl = torch.compile(call)


def missing_for_compile(device: torch.device) -> str:
    """What torch.compile lacks on this machine for `device`; empty when nothing is."""
    if not any(shutil.which(name) for name in COMPILERS):
        return "a C++ compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "the headers of Python"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton"
    return ""
