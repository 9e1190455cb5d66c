"""CPUs, memory and shared memory of this container: the smaller of what the machine has and its cgroup allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from moorage.cluster.reasons import MIB, Reason, size
from moorage.cluster.system import System

SMALL_SHM = 64 * MIB
"""What plain `docker run` gives."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """num_cpus: whole CPUs, at least one. memory and shm in bytes; 0 is not known."""

    num_cpus: int
    memory: int
    shm: int
    reasons: tuple[Reason, ...]
    warnings: tuple[str, ...]


def look(system: System) -> Host:
    cpus, cpus_why = _cpus(system)
    memory, memory_why = _memory(system)
    shm, warnings = _shm(system)
    return Host(
        num_cpus=cpus,
        memory=memory,
        shm=shm,
        reasons=(
            Reason(what="cpus", value=str(cpus), why=cpus_why),
            Reason(what="memory", value=size(memory) if memory else "unknown", why=memory_why),
            Reason(what="shm", value=size(shm), why="size of /dev/shm"),
        ),
        warnings=warnings,
    )


def _cpus(system: System) -> tuple[int, str]:
    allowed = system.allowed_cpus()
    quotas = [quota for quota in _cpu_quotas(system) if quota < allowed]
    if not quotas:
        return allowed, "allowed by the CPU affinity"
    # Rounded down: threads beyond the quota only throttle one another.
    quota = min(quotas)
    return max(1, int(quota)), f"cgroup quota of {quota:g} of {allowed} CPUs"


def _cpu_quotas(system: System) -> Iterator[float]:
    for folder in _cgroup_folders(system, ""):
        words = (system.text(f"{folder}/cpu.max") or "").split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            yield int(words[0]) / int(words[1])
    for folder in _cgroup_folders(system, "cpu"):
        quota, period = system.text(f"{folder}/cpu.cfs_quota_us"), system.text(f"{folder}/cpu.cfs_period_us")
        if quota and period and quota.isdigit() and period.isdigit():  # -1 is no quota
            yield int(quota) / int(period)


def _memory(system: System) -> tuple[int, str]:
    total = 0
    for line in (system.text("proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    # Without a limit version 2 says max, version 1 a number near 2^63.
    limits = [limit for limit in _memory_limits(system) if not total or limit < total]
    if limits and min(limits) < 1 << 60:
        return min(limits), "cgroup limit" + (f" of {size(total)}" if total else "")
    return total, "all of the machine's; no cgroup limit" if total else "/proc/meminfo cannot be read"


def _memory_limits(system: System) -> Iterator[int]:
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _cgroup_folders(system, controller):
            text = system.text(f"{folder}/{name}") or ""
            if text.isdigit():
                yield int(text)


def _cgroup_folders(system: System, controller: str) -> Iterator[str]:
    """The process's cgroup and its parents, where a limit of any of them binds; '' is version 2.

    Inside a container without a cgroup namespace the path in /proc/self/cgroup is the host's, while the mount shows the
    container's own group as its root: so the root is always among them, and folders that are not there do no harm.
    """
    for line in (system.text("proc/self/cgroup") or "").splitlines():
        _number, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        mounts = (controllers, controller) if controller else ("", "unified")
        for mount in dict.fromkeys(mounts):
            base = PurePosixPath("sys/fs/cgroup") / mount
            here = PurePosixPath(path.lstrip("/"))
            for folder in (here, *here.parents):
                yield str(base / folder)


def _shm(system: System) -> tuple[int, tuple[str, ...]]:
    try:
        shm = system.size_of(system.root / "dev/shm")
    except OSError as error:
        return 0, (f"/dev/shm cannot be used ({error.strerror}): DataLoader workers die without it; use num_workers=0",)
    if shm > SMALL_SHM:
        return shm, ()
    return shm, (
        f"/dev/shm has only {size(shm)}: DataLoader workers hand their batches over through it and die with a bus "
        "error when it is full; run the container with --shm-size 2g or --ipc host, or use num_workers=0",
    )
