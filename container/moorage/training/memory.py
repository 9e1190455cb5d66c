"""Bytes of memory that a rank's device has."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def device_memory(device: torch.device, ranks_per_host: int) -> int:
    """Bytes of the smallest device of the job, so that all ranks choose alike. Collective.

    On the CPU it is the rank's part of the host's memory, or of the container's limit.
    """
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = _host_memory() // max(1, ranks_per_host)
    if dist.is_initialized() and dist.get_world_size() > 1:
        smallest = torch.tensor(memory, dtype=torch.int64, device=device)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest.item())
    return memory


def _host_memory() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text(encoding="ascii").strip() if CGROUP_LIMIT.exists() else "max"
    return memory if limit == "max" else min(memory, int(limit))
