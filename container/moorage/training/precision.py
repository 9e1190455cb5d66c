"""Arithmetic of forward and backward: autocast for bf16 and fp16, and gradient scaling for fp16.

From accelerate comes the conversion of outputs, which is the same on CPU and GPU. Its autocast and its scaling are not
used: both belong to AcceleratorState, which joins a process group and sets thread counts of its own accord.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim import Optimizer

from moorage.errors import ConfigError
from moorage.training.override import Forward, override_forward

log = logging.getLogger("moorage")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """What the setting `precision` asks of a training step on `device`.

    Under fp16 the loss is scaled and a step whose gradients overflowed is skipped, on every rank alike: under ddp the
    reduced gradients carry the overflow to all, under fsdp torch reduces the finding over the shards.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.dtype = DTYPES.get(name)
        self.scaler = Scaler(device.type) if name == "fp16" else None
        self._checked = False  # whether an optimizer has been looked at since the last update

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss` ready for backward."""
        return self.scaler.scale(loss) if self.scaler else loss

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients to their true size, for clipping. At most once per step."""
        if self.scaler and _has_gradients(optimizer):
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Step `optimizer`, or skip it when its gradients are not finite."""
        if self.scaler and _has_gradients(optimizer):
            self.scaler.step(optimizer)
            self._checked = True
        else:
            optimizer.step()

    def update(self) -> bool:
        """Adapt the scale once all optimizers have stepped; True if one of them was skipped for it."""
        if not (self.scaler and self._checked):
            return False
        self._checked = False
        scale = self.scaler.get_scale()
        self.scaler.update()
        return self.scaler.get_scale() < scale

    def autocast(self, model: nn.Module) -> None:
        """Run the forward of `model` in this precision, its floating outputs in fp32, so that losses are too."""
        if self.dtype is None:
            return
        if self.name == "fp16" and any(p.dtype == torch.float16 for p in model.parameters() if p.requires_grad):
            raise ConfigError(
                "setting precision=fp16 needs a model with fp32 parameters",
                why="gradients of fp16 parameters cannot be unscaled without loss",
                fix="build the model in fp32, or use precision=bf16",
            )
        override_forward([model], self._autocast)

    def _autocast(self, forward: Forward) -> Forward:
        # Here, since importing accelerate takes a quarter of a second that fp32 need not spend.
        from accelerate.utils.operations import convert_to_fp32

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(self.device.type, dtype=self.dtype):
                outputs = forward(*args, **kwargs)
            return convert_to_fp32(outputs)

        return run

    def policy(self, *, root: bool = False) -> MixedPrecisionPolicy:
        """What fsdp gathers and reduces: parameters in low precision, gradients in fp32.

        Autocast goes on deciding what is computed in which type, as under ddp. The inputs of blocks are cast, those of
        the root are not: time steps and targets would be rounded.
        """
        if self.dtype is None:
            return MixedPrecisionPolicy(cast_forward_inputs=False)
        return MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=not root)


class Scaler(GradScaler):
    """torch's GradScaler that can take up a checkpoint made without one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            super().load_state_dict(state_dict)
        else:
            log.info("the checkpoint holds no gradient scale: starting from %g", self.get_scale())


def _has_gradients(optimizer: Optimizer) -> bool:
    """Whether the scaler will find anything to check: it fails on an optimizer whose models sat this step out."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
