"""Settle the layout of DDP's gradient buckets before the first step.

DDP begins with one bucket and, after its first backward, lays out others in the order in which gradients arrived. A
ring all-reduce sums each element in an order that depends on its place in the bucket, so from three ranks on the first
step of a resumed job would round otherwise than the same step of a job that was never interrupted: seen in 15 % of the
weights after five steps. Here the rebuild happens before any step, by a fixed order, in every job alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel


class _Touch(nn.Module):
    """Stands in for the model: gives every trainable parameter a gradient of zero, the last one first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        sparse = {
            id(module.weight)
            for module in model.modules()
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
        }
        self._trained = [(p, id(p) in sparse) for p in model.parameters() if p.requires_grad]

    def forward(self) -> Tensor:
        total: Tensor | None = None
        for parameter, sparse in self._trained:
            term = _zero(parameter, sparse)
            total = term if total is None else total + term
        assert total is not None
        return total


def settle_buckets(model: DistributedDataParallel) -> None:
    """Run one backward with zero gradients and let DDP rebuild. Collective.

    Weights, buffers and random numbers stay as they are; gradients end as None; the model's hooks do not run, except
    those on its parameters. Nothing is rebuilt, and nothing done, under find_unused_parameters.
    """
    if model.find_unused_parameters:
        return
    inner, broadcast_buffers = model.module, model.broadcast_buffers
    gradients = {parameter: parameter.grad for parameter in inner.parameters()}
    model.module, model.broadcast_buffers = _Touch(inner), False
    try:
        for _ in range(2):  # the second forward rebuilds, and its backward leaves the reducer at rest
            model().backward()
    finally:
        model.module, model.broadcast_buffers = inner, broadcast_buffers
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _zero(parameter: Tensor, sparse: bool) -> Tensor:
    if sparse:  # the reducer expects a sparse gradient where it will get one in training
        index = torch.zeros(1, dtype=torch.long, device=parameter.device)
        return functional.embedding(index, parameter, sparse=True).sum() * 0
    if parameter.is_complex():
        parameter = torch.view_as_real(parameter)
    return parameter.sum() * 0
