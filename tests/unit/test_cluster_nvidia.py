"""NVIDIA GPUs: the real nvidia-ml-py against a driver library compiled here, and CUDA's rules of visibility as data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moorage.cluster.devices import torch_build, torch_trouble
from moorage.cluster.nvidia import Gpu, Nvidia, query, visible
from moorage.cluster.system import System

GIB = 1 << 30
GPUS = tuple(Gpu(uuid=f"GPU-{letter * 4}-0000", name="A100", memory=40 * GIB) for letter in "abcd")
INSTANCES = tuple(Gpu(uuid=f"MIG-{letter * 4}-1111", name="A100 MIG", memory=20 * GIB) for letter in "ef")
DIVIDED = Gpu(uuid="GPU-eeee-0000", name="A100", memory=0, mig=True, instances=INSTANCES)

LOOK = """
import dataclasses, json, pathlib, sys
from moorage.cluster import System
from moorage.cluster.nvidia import query
print(json.dumps(dataclasses.asdict(query(System(root=pathlib.Path(sys.argv[1]))))))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libnvidia-ml.so.1, and a root with the driver's device node."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the driver library with")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", source], check=True, timeout=60)
    (folder / "root" / "dev").mkdir(parents=True)
    (folder / "root" / "dev" / "nvidiactl").touch()
    return folder


def found(driver: Path, **fake: str) -> dict[str, Any]:
    env = {**os.environ, "LD_LIBRARY_PATH": str(driver), **fake}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, driver / "root"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


DETECT = """
import os, pathlib, sys
from moorage.cluster import System, detect
from moorage.contract.config import JobConfig
cluster = detect(JobConfig.read(os.environ), os.environ, system=System(root=pathlib.Path(sys.argv[1])))
print(cluster.devices.kind, cluster.ranks_per_host, cluster.devices.driver, cluster.devices.compat)
print(cluster.describe(), *cluster.warnings, sep="\\n")
"""


def detected(driver: Path, base: Path, *hosts: str, root: Path | None = None, **fake: str) -> list[str]:
    """Lines of DETECT on the first of `hosts`."""
    config = base / "input" / "config"
    config.mkdir(parents=True, exist_ok=True)
    names = hosts or ("algo-1",)
    (config / "resourceconfig.json").write_text(json.dumps({"current_host": names[0], "hosts": names}))
    env = {**os.environ, "LD_LIBRARY_PATH": str(driver), "SAGEMAKER_BASE_DIR": str(base), **fake}
    done = subprocess.run(
        [sys.executable, "-c", DETECT, root or driver / "root"],
        env=env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_detect_starts_a_rank_for_every_gpu_that_is_left_visible(driver: Path, tmp_path: Path) -> None:
    lines = detected(driver, tmp_path, FAKE_GPUS="8", CUDA_VISIBLE_DEVICES="0,1,2,9")
    assert lines[0].split() == ["cuda", "3", "580.65.06"]
    assert "3 x NVIDIA A100-SXM4-40GB 40.0 GiB" in "\n".join(lines)
    assert "CUDA_VISIBLE_DEVICES=0,1,2,9: '9' names no GPU of this host" in "\n".join(lines)


def test_an_older_driver_gets_the_images_newer_libcuda(driver: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(driver / "root", root)
    (root / "usr/local/cuda/compat").mkdir(parents=True)
    (root / "usr/local/cuda/compat/libcuda.so.580.95.05").touch()
    older = {"FAKE_GPUS": "2", "FAKE_DRIVER": "550.163.01", "FAKE_CUDA": "12040"}
    lines = detected(driver, tmp_path, root=root, **older)
    assert lines[0] == "cuda 2 550.163.01 /usr/local/cuda/compat"
    (line,) = [line for line in lines if line.startswith("cuda-compat ")]
    assert "libcuda 580.95.05 is newer than the driver 550.163.01" in line
    lines = detected(driver, tmp_path, root=root, FAKE_NAME="NVIDIA GeForce RTX 4090", **older)
    assert lines[0].split() == ["cuda", "2", "550.163.01"]
    assert any("not used" in line and "NVIDIA GeForce RTX 4090" in line for line in lines)


def test_efa_beside_gpus_without_its_plugin_is_said(driver: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(driver / "root", root)
    (root / "dev/infiniband").mkdir()
    (root / "dev/infiniband/uverbs0").touch()
    two = ("algo-1", "algo-2")
    lines = detected(driver, tmp_path, *two, root=root, FAKE_GPUS="1")
    assert any("1 EFA devices are here, but not /opt/amazon/ofi-nccl" in line and "EFA=1" in line for line in lines)
    for quiet in (
        detected(driver, tmp_path, *two, root=root, FAKE_GPUS="1", NCCL_NET_PLUGIN="mine"),
        detected(driver, tmp_path, *two, root=root, FAKE_GPUS="0"),
        detected(driver, tmp_path, root=root, FAKE_GPUS="1"),
    ):
        assert not any("EFA=1" in line for line in quiet), "nothing is wrong there"


def test_without_a_driver_there_are_no_gpus_and_no_complaint(tmp_path: Path) -> None:
    assert query(System(root=tmp_path)) == Nvidia()


def test_the_gpus_and_the_driver_are_read(driver: Path) -> None:
    answer = found(driver, FAKE_GPUS="8")
    assert [gpu["uuid"] for gpu in answer["gpus"]] == [f"GPU-{n:08d}-aaaa" for n in range(8)]
    assert {(gpu["name"], gpu["memory"], gpu["mig"]) for gpu in answer["gpus"]} == {
        ("NVIDIA A100-SXM4-40GB", 40 * GIB, False)
    }
    assert (answer["driver"], answer["cuda"], answer["warnings"]) == ("580.65.06", [13, 0], [])


def test_a_driver_that_does_not_start_is_a_warning(driver: Path) -> None:
    answer = found(driver, FAKE_GPUS="8", FAKE_INIT="9")
    assert answer["gpus"] == []
    assert "NVML failed" in answer["warnings"][0]
    assert "--gpus all" in answer["warnings"][0]


def test_a_missing_driver_library_is_a_warning(driver: Path) -> None:
    answer = found(driver, LD_LIBRARY_PATH="")
    assert answer["gpus"] == []
    assert "NVML failed" in answer["warnings"][0]


def test_a_lost_gpu_is_named_and_left_out(driver: Path) -> None:
    answer = found(driver, FAKE_GPUS="4", FAKE_LOST="2")
    assert [gpu["uuid"][4:12] for gpu in answer["gpus"]] == ["00000000", "00000001", "00000003"]
    assert answer["warnings"] == ["GPU 2 cannot be used: GPU is lost; it is left out"]


def test_mig_instances_are_read(driver: Path) -> None:
    answer = found(driver, FAKE_GPUS="2", FAKE_MIG="1")
    assert [gpu["mig"] for gpu in answer["gpus"]] == [False, True]
    assert [(i["uuid"], i["memory"]) for i in answer["gpus"][1]["instances"]] == [
        ("MIG-00000001-0001", 20 * GIB),
        ("MIG-00000001-0004", 20 * GIB),
    ]


def test_memory_that_is_not_reported_is_zero(driver: Path) -> None:
    assert [gpu["memory"] for gpu in found(driver, FAKE_GPUS="1", FAKE_UNIFIED="1")["gpus"]] == [0]


@pytest.mark.parametrize(
    ("value", "letters", "warned"),
    [
        (None, "abcd", False),
        ("", "", False),
        ("-1", "", False),
        ("2", "c", False),
        ("3,1", "db", False),
        ("0, 1 ,2", "abc", False),
        ("1gpu2,2ampere", "bc", False),
        ("0,-1,2", "a", False),
        ("0,7,1", "a", True),
        ("1,1", "", True),
        ("all", "", True),
        ("0,GPU-bbbb", "ab", False),
        ("GPU-cccc-0000,GPU-aaaa", "ca", False),
        ("GPU-zzzz", "", True),
        ("GPU-", "", True),
        ("GPU-aaaa,GPU-aaaa-0000", "", True),
        ("MIG-eeee-1111", "", True),
    ],
)
def test_cuda_visible_devices(value: str | None, letters: str, warned: bool) -> None:
    seen, _why, warning = visible(GPUS, value)
    assert "".join(gpu.uuid[4] for gpu in seen) == letters
    assert bool(warning) == warned
    if warned:
        assert f"CUDA_VISIBLE_DEVICES={value}" in warning


def test_one_mig_instance_is_one_device() -> None:
    assert visible((DIVIDED,), None)[0] == INSTANCES[:1]
    assert visible((DIVIDED,), "0")[0] == INSTANCES[:1]
    assert visible((DIVIDED,), "MIG-ffff-1111")[0] == INSTANCES[1:]
    seen, _why, warning = visible((DIVIDED,), "MIG-ffff-1111,MIG-eeee-1111")
    assert seen == INSTANCES[1:]
    assert "one MIG instance" in warning


def test_whole_gpus_come_before_divided_ones() -> None:
    assert visible((DIVIDED, *GPUS), None)[0] == GPUS


def test_mig_mode_without_an_instance_is_said() -> None:
    seen, _why, warning = visible((Gpu(uuid="GPU-1", name="A100", memory=0, mig=True),), None)
    assert seen == ()
    assert "no instance" in warning


def test_the_build_of_torch_is_read_without_importing_it() -> None:
    code = "import sys; from moorage.cluster.devices import torch_build; print(torch_build(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split()[-1] == "False"
    import torch

    assert torch_build() == (torch.version.cuda or "")


def test_a_torch_that_cannot_use_the_gpus_is_said() -> None:
    found_ = Nvidia(driver="535.1", cuda=(12, 2), gpus=GPUS)
    assert "CPU build" in torch_trouble("", found_)[0]
    assert "CUDA 13.0" in torch_trouble("13.0", found_)[0]
    assert "cuda-compat" in torch_trouble("13.0", found_)[0]
    assert torch_trouble("13.0", found_, compat="/usr/local/cuda/compat") == []
    assert "CPU build" in torch_trouble("", found_, compat="/usr/local/cuda/compat")[0]
    assert torch_trouble("12.9", found_) == []  # minor versions are compatible within one major
    assert torch_trouble(None, found_) == []


def test_a_build_for_cuda_is_told_from_a_cpu_build(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip = None\n")
    code = "from moorage.cluster.devices import torch_build; print(torch_build())"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "13.0\n"
