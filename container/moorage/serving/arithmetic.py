"""How a model computes: precision, compilation, threads, gradients off."""

from __future__ import annotations

import functools
import importlib.util
import logging
import shutil
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from moorage.serving.models import Model

log = logging.getLogger("moorage")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
COMPILERS = ("c++", "g++", "gcc", "clang++", "cc")

Guard = Callable[[], AbstractContextManager[Any]]


def cast(module: nn.Module, precision: str) -> None:
    """Cast the weights, in place; the running statistics of batch norm stay float32, as their kernels want them."""
    module.to(DTYPES[precision])
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.float()


def guard(device: torch.device, *, autocast: str, inference_mode: bool) -> Guard:
    """What a model runs under. autocast: a precision, or empty.

    inference_mode: the fastest, for what is ours alone; a handler may switch gradients on again under no_grad, and may
    write to what it is given.
    """
    without_gradients = torch.inference_mode if inference_mode else torch.no_grad
    if not autocast:
        return without_gradients
    dtype = DTYPES[autocast]

    def both() -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(without_gradients())
        stack.enter_context(torch.autocast(device.type, dtype=dtype))
        return stack

    return both


def compiled(model: Model, device: torch.device) -> tuple[Callable[[Any], Any], str]:
    """`model.call`, compiled for any batch size, and what was done or why not."""
    missing = _missing(device)
    if missing:
        log.warning("compile has no effect: torch.compile needs %s here", missing)
        return model.call, f"not compiled, for want of {missing}"
    if isinstance(model.value, torch.jit.ScriptModule):
        log.warning("compile has no effect on TorchScript, which is compiled already")
        return model.call, "not compiled, being TorchScript"
    # A function of ours around it: torch.compile passes over frames of torch's own modules, such as Sequential.
    return torch.compile(functools.partial(_through, model.call), dynamic=True), "compiled"


def _through(call: Callable[[Any], Any], data: Any) -> Any:
    return call(data)


def _missing(device: torch.device) -> str:
    if not any(shutil.which(name) for name in COMPILERS):
        return "a C++ compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "the headers of Python"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton"
    return ""
