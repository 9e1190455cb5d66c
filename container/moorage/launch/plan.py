"""What will be started on this host: pure data, made from what was read and detected, compared as a whole by tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moorage.cluster import Cluster
from moorage.contract.config import JobConfig
from moorage.contract.program import Program
from moorage.contract.progress import RUN_FOLDER
from moorage.launch.accelerate import accelerate_env

LOOPBACK = "127.0.0.1"

_KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""Where glibc's thresholds end by themselves (mallopt(3), M_MMAP_THRESHOLD) once a block of 32 MiB was freed. Before
that, a step's activations go back to the kernel as they are freed, and the next step faults them in again: seen as 600
page faults in each step of 7 ms, a tenth of its time."""


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """One process. rank: global. error_file: where it may leave its exception, as under torchrun."""

    rank: int
    local_rank: int
    argv: tuple[str, ...]
    cwd: Path
    error_file: Path
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """The ranks of this host in one attempt. notes: what is set aside or replaced, and why, a sentence each."""

    host: str
    attempt: int
    world_size: int
    ranks: tuple[RankPlan, ...]
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        first, last = self.ranks[0].rank, self.ranks[-1].rank
        ours = f"rank {first}" if first == last else f"ranks {first} to {last}"
        return f"attempt {self.attempt}: {ours} of {self.world_size} on {self.host}"


def plan_launch(
    config: JobConfig,
    cluster: Cluster,
    program: Program,
    *,
    env: Mapping[str, str],
    job_env: Mapping[str, str],
    attempt: int,
    port: int,
    run_folder: Path,
) -> LaunchPlan:
    """env: what the ranks inherit. job_env: SM_*. port: free on the first host. run_folder: this host's own.

    In order of precedence: what the program needs, torchrun's protocol, what the user set, what we would like.
    """
    wished, notes = _wished(config, cluster, job_env)
    protocol = _protocol(config, cluster, attempt=attempt, port=port)
    common = {**wished, **env, **_libraries(cluster, env), **protocol, **program.env, RUN_FOLDER: str(run_folder)}
    # SM_*: SDK v3's driver sets them in every job, and nobody could do anything about it.
    replaced = sorted(key for key in protocol if env.get(key, protocol[key]) != protocol[key] and key[:3] != "SM_")
    if replaced:
        notes += (f"set anew for each rank, whatever the environment says: {', '.join(replaced)}",)
    folder = run_folder / f"attempt-{attempt}"
    ranks = tuple(
        _rank(program, common, rank=cluster.first_rank + local, local_rank=local, folder=folder)
        for local in range(cluster.ranks_per_host)
    )
    return LaunchPlan(
        host=cluster.current_host, attempt=attempt, world_size=cluster.world_size, ranks=ranks, notes=notes
    )


def _rank(program: Program, common: Mapping[str, str], *, rank: int, local_rank: int, folder: Path) -> RankPlan:
    error_file = folder / f"error-{local_rank}.json"
    own = {
        "RANK": str(rank),
        "ROLE_RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "TORCHELASTIC_ERROR_FILE": str(error_file),
    }
    return RankPlan(
        rank=rank,
        local_rank=local_rank,
        argv=program.argv,
        cwd=program.cwd,
        error_file=error_file,
        env={**common, **own},
    )


def _protocol(config: JobConfig, cluster: Cluster, *, attempt: int, port: int) -> dict[str, str]:
    """What torchrun gives every rank of a host (torch 2.13, local_elastic_agent.py, _start_workers)."""
    # The name of a single host need not resolve anywhere.
    master = cluster.hosts[0] if cluster.num_hosts > 1 else LOOPBACK
    return {
        "LOCAL_WORLD_SIZE": str(cluster.ranks_per_host),
        "WORLD_SIZE": str(cluster.world_size),
        "GROUP_RANK": str(cluster.host_rank),
        "GROUP_WORLD_SIZE": str(cluster.num_hosts),
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": str(cluster.world_size),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
        "SM_MASTER_ADDR": master,
        "SM_MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": config.name,
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "TORCHELASTIC_MAX_RESTARTS": str(config.settings.max_restarts),
        # There is no agent's store: rank 0 hosts its own.
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }


def _libraries(cluster: Cluster, env: Mapping[str, str]) -> dict[str, str]:
    """In the ranks' environment and not in ours: the loader reads it once, when a process starts."""
    if not cluster.devices.compat:
        return {}
    folders = [cluster.devices.compat, env.get("LD_LIBRARY_PATH", "")]
    return {"LD_LIBRARY_PATH": ":".join(folder for folder in folders if folder)}


def _wished(config: JobConfig, cluster: Cluster, job_env: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Variables that the user's own win over."""
    accelerate, notes = accelerate_env(config.settings, cluster)
    wished = {
        **job_env,
        **cluster.env,
        **accelerate,
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "PYTHONUNBUFFERED": "1",
        # A crash in native code then shows where the program was.
        "PYTHONFAULTHANDLER": "1",
        **_KEEP_FREED_MEMORY,
    }
    if cluster.ranks_per_host > 1:
        # torchrun sets 1, which leaves most cores of a host with few devices idle.
        wished["OMP_NUM_THREADS"] = str(max(1, cluster.num_cpus // cluster.ranks_per_host))
    return wished, notes
