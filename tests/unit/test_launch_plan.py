"""The plan, as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import pytest

from jobs import Job
from moorage.cluster import Cluster, Devices
from moorage.contract.config import JobConfig
from moorage.contract.program import Program
from moorage.launch.plan import LaunchPlan, RankPlan, plan_launch

Kind = Literal["cuda", "cpu"]

PROGRAM = Program(
    argv=("/usr/bin/python3", "/opt/ml/code/train.py", "--lr", "0.1"),
    cwd=Path("/opt/ml/code"),
    env={"PYTHONPATH": "/opt/ml/code"},
    fingerprint="f",
    description="train.py",
)


def a_config(job: Job, **settings: str) -> JobConfig:
    job.write("resourceconfig", {"current_host": "b", "hosts": ["c", "b", "a"]})
    job.hyperparameters(**{f"moorage_{key}": value for key, value in settings.items()})
    return job.config()


def a_cluster(kind: Kind = "cpu", *, ranks: Mapping[str, int] = MappingProxyType({"a": 2, "b": 2, "c": 2})) -> Cluster:
    return Cluster(
        hosts=tuple(sorted(ranks)),
        current_host="b",
        instance_type="local",
        current_group="",
        instance_groups=(),
        devices=Devices(kind=kind, names=("a device",), memory=(0,)),
        num_cpus=7,
        memory=0,
        shm=0,
        network_interface="eth0",
        efa=0,
        ranks=ranks,
        env={"NCCL_HOSTID": "b"},
        reasons=(),
        warnings=(),
    )


def a_plan(config: JobConfig, cluster: Cluster, env: Mapping[str, str]) -> LaunchPlan:
    return plan_launch(
        config,
        cluster,
        PROGRAM,
        env=env,
        job_env={"SM_MODEL_DIR": "/opt/ml/model"},
        attempt=1,
        port=12345,
        run_folder=Path("/tmp/run"),
    )


def test_the_ranks_of_the_second_of_three_hosts(tmp_path: Path) -> None:
    plan = a_plan(a_config(Job(tmp_path)), a_cluster(), {"PATH": "/bin"})
    common = {
        # torchrun's protocol
        "LOCAL_WORLD_SIZE": "2",
        "WORLD_SIZE": "6",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "3",
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": "6",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "12345",
        "TORCHELASTIC_RUN_ID": "local",
        "TORCHELASTIC_RESTART_COUNT": "1",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "OMP_NUM_THREADS": "3",
        # accelerate's
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_USE_CPU": "true",
        # the job's, the cluster's, the program's
        "SM_MODEL_DIR": "/opt/ml/model",
        "SM_MASTER_ADDR": "a",
        "SM_MASTER_PORT": "12345",
        "NCCL_HOSTID": "b",
        "PYTHONPATH": "/opt/ml/code",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "MALLOC_MMAP_THRESHOLD_": "33554432",
        "MALLOC_TRIM_THRESHOLD_": "67108864",
        "MOORAGE_RUN_FOLDER": "/tmp/run",
        "PATH": "/bin",
    }
    assert plan == LaunchPlan(
        host="b",
        attempt=1,
        world_size=6,
        ranks=tuple(
            RankPlan(
                rank=2 + local,
                local_rank=local,
                argv=PROGRAM.argv,
                cwd=PROGRAM.cwd,
                error_file=Path(f"/tmp/run/attempt-1/error-{local}.json"),
                env={
                    **common,
                    "RANK": str(2 + local),
                    "ROLE_RANK": str(2 + local),
                    "LOCAL_RANK": str(local),
                    "TORCHELASTIC_ERROR_FILE": f"/tmp/run/attempt-1/error-{local}.json",
                },
            )
            for local in range(2)
        ),
    )


def test_what_the_user_set_stays_and_what_must_be_ours_is_said(tmp_path: Path) -> None:
    own = {
        "OMP_NUM_THREADS": "9",
        "NCCL_HOSTID": "mine",
        "PYTHONUNBUFFERED": "",
        "SM_MODEL_DIR": "/mine",
        "ACCELERATE_MIXED_PRECISION": "bf16",
    }
    theirs = {"WORLD_SIZE": "64", "MASTER_PORT": "12345", "SM_MASTER_PORT": "7777"}
    plan = a_plan(a_config(Job(tmp_path)), a_cluster(), {**own, **theirs})
    assert {key: plan.ranks[0].env[key] for key in own} == own
    assert plan.ranks[0].env["WORLD_SIZE"] == "6"
    assert plan.ranks[0].env["SM_MASTER_PORT"] == plan.ranks[0].env["MASTER_PORT"] != "7777"
    assert plan.notes == ("set anew for each rank, whatever the environment says: WORLD_SIZE",)


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (None, "/usr/local/cuda/compat"),
        ("", "/usr/local/cuda/compat"),
        ("/opt/theirs:/more", "/usr/local/cuda/compat:/opt/theirs:/more"),
    ],
)
def test_cuda_compat_comes_before_the_libraries_of_the_user(tmp_path: Path, theirs: str | None, expected: str) -> None:
    devices = Devices(kind="cuda", names=("A100",), memory=(0,), driver="550.1", compat="/usr/local/cuda/compat")
    cluster = dataclasses.replace(a_cluster("cuda"), devices=devices)
    plan = a_plan(a_config(Job(tmp_path)), cluster, {} if theirs is None else {"LD_LIBRARY_PATH": theirs})
    assert {rank.env["LD_LIBRARY_PATH"] for rank in plan.ranks} == {expected}


def test_without_cuda_compat_the_libraries_stay_as_they_are(tmp_path: Path) -> None:
    plan = a_plan(a_config(Job(tmp_path)), a_cluster("cuda"), {"LD_LIBRARY_PATH": "/opt/theirs"})
    assert plan.ranks[0].env["LD_LIBRARY_PATH"] == "/opt/theirs"
    assert "LD_LIBRARY_PATH" not in a_plan(a_config(Job(tmp_path)), a_cluster("cuda"), {}).ranks[0].env


def test_hosts_of_different_size(tmp_path: Path) -> None:
    plan = a_plan(a_config(Job(tmp_path)), a_cluster(ranks={"a": 4, "b": 1, "c": 8}), {})
    assert [rank.rank for rank in plan.ranks] == [4]
    assert (plan.world_size, plan.ranks[0].env["LOCAL_WORLD_SIZE"]) == (13, "1")
    assert "OMP_NUM_THREADS" not in plan.ranks[0].env, "one rank may use all cores"


def test_one_host_needs_no_name(tmp_path: Path) -> None:
    plan = a_plan(a_config(Job(tmp_path)), a_cluster(ranks={"b": 2}), {})
    assert plan.ranks[0].env["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("kind", "settings", "expected", "absent"),
    [
        (
            "cuda",
            {"strategy": "ddp", "precision": "bf16"},
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            "ACCELERATE_USE_CPU",
        ),
        (
            "cuda",
            {"strategy": "fsdp", "activation_checkpointing": "true"},
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "ACCELERATE_USE_PARALLELISM_CONFIG",
        ),
        (
            "cuda",
            {"strategy": "hsdp"},
            {"PARALLELISM_CONFIG_DP_SHARD_SIZE": "2", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "3", "FSDP_VERSION": "2"},
            "ACCELERATE_USE_CPU",
        ),
        ("cpu", {"strategy": "fsdp", "precision": "fp16"}, {"ACCELERATE_USE_CPU": "true"}, "ACCELERATE_USE_FSDP"),
        (
            "cpu",
            {"accumulation": "4", "compile": "true"},
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
            "FSDP_VERSION",
        ),
        ("cuda", {}, {"ACCELERATE_MIXED_PRECISION": "no"}, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
    ],
)
def test_accelerate(
    tmp_path: Path, kind: Kind, settings: dict[str, str], expected: dict[str, str], absent: str
) -> None:
    plan = a_plan(a_config(Job(tmp_path), **settings), a_cluster(kind), {})
    env = plan.ranks[0].env
    assert {key: env[key] for key in expected} == expected
    assert absent not in env
    assert bool(plan.notes) == (kind == "cpu" and "strategy" in settings), "what accelerate cannot do is said"
