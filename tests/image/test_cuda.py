"""The CUDA variant, as far as a machine without a GPU can show it: `make test-cuda` builds it and runs this.

A driver is made up where one is needed: NVML from tests/unit/fake_nvml.c, and a libcuda that tells which one it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from image.containers import Containers
from image.job import ContainerJob, metrics
from support import ROOT, JobFolder

IMAGE = os.environ.get("MOORAGE_TEST_CUDA_IMAGE", "moorage:cuda")
BUDGET = 5_600_000_000
"""Bytes, unpacked, without EFA."""

GIVEN = "usr/lib/x86_64-linux-gnu"
"""Where the container runtime puts the driver's libraries."""


@pytest.fixture
def cuda() -> Iterator[Containers]:
    with Containers.opened() as opened:
        try:
            opened.client.images.get(IMAGE)
        except docker.errors.ImageNotFound:
            pytest.skip(f"there is no {IMAGE}: `make test-cuda` builds it, of gigabytes, and runs this")
        opened.image = IMAGE
        yield opened


def python(cuda: Containers, code: str, **options: Any) -> str:
    """What `code` prints in the image, without a word on stderr and with warnings as errors."""
    container = cuda.start("python", "-W", "error", "-c", textwrap.dedent(code), **options)
    assert container.wait(120) == 0, container.logs()
    assert container.logs(stdout=False) == ""
    return container.logs()


def attributes(cuda: Containers) -> dict[str, Any]:
    return dict(cuda.client.images.get(IMAGE).attrs)


def test_torch_is_imported_without_a_driver(cuda: Containers) -> None:
    said = python(
        cuda,
        """
        import json, torch
        print(json.dumps({"built": torch.version.cuda, "compiled": torch._C._cuda_getCompiledVersion(),
            "available": torch.cuda.is_available(), "devices": torch.cuda.device_count(),
            "nccl": torch.distributed.is_nccl_available() and torch.cuda.nccl.version(),
            "cudnn": torch.backends.cudnn.version(), "archs": torch._C._cuda_getArchFlags().split()}))
        """,
    )
    found = json.loads(said)
    print(f"CUDA {found['built']}, NCCL {found['nccl']}, cuDNN {found['cudnn']}, for {' '.join(found['archs'])}")
    assert (found["built"], found["compiled"]) == ("13.0", 13000)
    assert (found["available"], found["devices"]) == (False, 0)
    assert found["nccl"] >= [2, 27]
    # The GPUs of SageMaker's g4dn, p4, g5, p5 and p6 instances.
    assert {"sm_75", "sm_80", "sm_86", "sm_90", "sm_100"} <= set(found["archs"])


def test_every_library_of_torch_finds_what_it_needs_but_the_driver(cuda: Containers) -> None:
    missing = cuda.run(
        "sh", "-c", "cd /opt/venv/lib/python3*/site-packages && ldd torch/lib/*.so torch/*.so | grep not.found"
    )
    assert {line.split()[0] for line in missing.splitlines()} == {"libcuda.so.1"}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gloo_ranks_learn_digits(cuda: Containers, tmp_path: Path, strategy: str) -> None:
    job = ContainerJob(cuda, tmp_path, ranks=2).digits(epochs=3, moorage_strategy=strategy)
    (host,) = job.finishes(shm_size="1g")
    assert "no NVIDIA driver" in host.logs()
    assert "val_accuracy=" in metrics(host)[-1]
    assert float(metrics(host)[-1].split("val_accuracy=")[1].split()[0]) > 0.8
    assert job.weights()
    ours = "moorage: warning: "
    assert not [line for line in host.logs().splitlines() if re.search("(?i)warning|error", line) and ours not in line]


def test_it_says_what_it_is(cuda: Containers) -> None:
    config = attributes(cuda)["Config"]
    assert config["Cmd"] == ["train"]
    assert not config["Entrypoint"]
    assert "cuda variant" in config["Labels"]["org.opencontainers.image.description"]
    assert config["Labels"]["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    env = dict(variable.split("=", 1) for variable in config["Env"])
    assert (env["NVIDIA_VISIBLE_DEVICES"], env["NVIDIA_DRIVER_CAPABILITIES"]) == ("all", "compute,utility")


def test_it_is_within_its_budget(cuda: Containers) -> None:
    assert attributes(cuda)["Size"] <= BUDGET


def test_cudas_tools_for_development_are_not_in_it(cuda: Containers) -> None:
    tools = r"find / -xdev -type f \( -name nvcc -o -name cicc -o -name 'cuda-gdb*' -o -name ncu -o -name nsys \)"
    assert cuda.run("sh", "-c", tools) == ""


def test_the_name_that_efas_plugin_opens_is_the_runtime_that_torch_uses(cuda: Containers) -> None:
    loaded = python(
        cuda,
        """
        import ctypes, pathlib, torch
        ctypes.CDLL("libcudart.so").cudaRuntimeGetVersion
        maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
        print(*sorted({line.split()[-1] for line in maps if "libcudart" in line}))
        """,
    ).split()
    assert len(loaded) == 1
    assert loaded[0].endswith("/nvidia/cu13/lib/libcudart.so.13")


KERNEL = '''
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.build import compile_module_from_src


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    tl.store(out + at, tl.load(x + at, mask) + tl.load(y + at, mask), mask)


types = {"x": "*fp32", "y": "*fp32", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"}
for capability in (80, 90, 100):
    made = triton.compile(ASTSource(add, types, {"BLOCK": 128}), target=GPUTarget("cuda", capability, 32))
    print(capability, made.asm["cubin"][:4] == b"\\x7fELF")
module = """#include <Python.h>
static struct PyModuleDef it = {PyModuleDef_HEAD_INIT, "it"};
PyMODINIT_FUNC PyInit_it(void) { return PyModule_Create(&it); }
"""
print(compile_module_from_src(module, "it").__name__)
'''


def test_torch_compile_finds_its_compilers(cuda: Containers, tmp_path: Path) -> None:
    """Kernels for GPUs that are not here, and the C module by which Triton starts them."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    said = cuda.run("python", "-W", "error", "/kernel.py", mounts={tmp_path / "kernel.py": "/kernel.py"}, timeout=120)
    assert said.splitlines() == ["80 True", "90 True", "100 True", "it"]


PROGRAM = """
import ctypes, os

print("rank", os.environ["RANK"], os.environ["LD_LIBRARY_PATH"] or "-", ctypes.CDLL("libcuda.so.1").which())
"""


@pytest.fixture
def driver(cuda: Containers, tmp_path: Path) -> dict[Path | str, str]:
    """What to mount for a host with two GPUs, and for an image with cuda-compat 580.95.05. Its libcuda says 580, the
    driver's 550; they are compiled by the image's own compiler, for its own C library."""
    work = tmp_path / "driver"
    work.mkdir()
    shutil.copy(ROOT / "tests" / "unit" / "fake_nvml.c", work / "nvml.c")
    (work / "cuda.c").write_text("int which(void) { return VERSION; }\n")
    (work / "nvidiactl").touch()
    (work / "compat").mkdir()
    gcc = "gcc -shared -fPIC -Wl,-soname,libcuda.so.1"
    commands = [
        "gcc -shared -fPIC -o libnvidia-ml.so.1 nvml.c",
        f"{gcc} -DVERSION=550 -o libcuda.so.1 cuda.c",
        f"{gcc} -DVERSION=580 -o compat/libcuda.so.580.95.05 cuda.c",
        "ln -s libcuda.so.580.95.05 compat/libcuda.so.1",
    ]
    cuda.run("sh", "-c", " && ".join(commands), mounts={work: "/work"}, working_dir="/work")
    return {
        work / "nvidiactl": "/dev/nvidiactl:ro",
        work / "libnvidia-ml.so.1": f"/{GIVEN}/libnvidia-ml.so.1:ro",
        work / "libcuda.so.1": f"/{GIVEN}/libcuda.so.1:ro",
        work / "compat": "/usr/local/cuda/compat:ro",
    }


@pytest.mark.parametrize(
    ("fake", "path", "libcuda", "why"),
    [
        (
            {"FAKE_DRIVER": "550.163.01", "FAKE_CUDA": "12040"},
            "/usr/local/cuda/compat",
            580,
            "libcuda 580.95.05 is newer than the driver 550.163.01",
        ),
        (
            {"FAKE_DRIVER": "550.163.01", "FAKE_CUDA": "12040", "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"},
            "/usr/local/cuda/compat:/usr/local/nvidia/lib64",
            580,
            "libcuda 580.95.05 is newer than the driver 550.163.01",
        ),
        ({"FAKE_DRIVER": "580.126.09"}, "-", 550, "the driver 580.126.09 is not of an older branch"),
        (
            {"FAKE_DRIVER": "550.163.01", "FAKE_CUDA": "12040", "FAKE_NAME": "NVIDIA GeForce RTX 4090"},
            "-",
            550,
            "for data center GPUs, and here is NVIDIA GeForce RTX 4090",
        ),
    ],
)
def test_the_ranks_load_the_libcuda_that_fits(
    cuda: Containers,
    driver: dict[Path | str, str],
    tmp_path: Path,
    *,
    fake: dict[str, str],
    path: str,
    libcuda: int,
    why: str,
) -> None:
    folder = JobFolder(tmp_path / "ml")
    folder.code(train=PROGRAM)
    # NVIDIA's base images set it, Debian's do not.
    host = cuda.start(ml=folder.base, env={"LD_LIBRARY_PATH": "", "FAKE_GPUS": "2", **fake}, mounts=driver)
    assert host.wait(120) == 0, host.logs()
    assert sorted(re.findall(r"rank \d \S+ \d+$", host.logs(stderr=False), re.MULTILINE)) == [
        f"rank {rank} {path} {libcuda}" for rank in range(2)
    ]
    assert why in "\n".join(host.lines("cuda-compat"))
    # Without it, torch 2.13 for CUDA 13 could not be used with the older driver, which is said at the start.
    assert bool(host.lines("torch is built for CUDA 13")) == (libcuda == 550 and "FAKE_CUDA" in fake)
