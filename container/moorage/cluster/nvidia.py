"""NVIDIA GPUs through NVML, and which of them CUDA_VISIBLE_DEVICES leaves to CUDA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from moorage.cluster.system import System

DRIVER_FILES = ("dev/nvidiactl", "proc/driver/nvidia/version", "dev/dxg")
"""One of them is there wherever a driver is (dxg: WSL). Without one NVML is not even imported."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, or an instance of one under MIG. memory: bytes, 0 where the driver does not say.

    instances: what a GPU in MIG mode is divided into; such a GPU cannot be used as a whole.
    """

    uuid: str
    name: str
    memory: int
    mig: bool = False
    instances: tuple[Gpu, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Nvidia:
    """driver: its version, empty where there is none. cuda: the newest CUDA it serves, such as (13, 0)."""

    driver: str = ""
    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[Gpu, ...] = ()
    warnings: tuple[str, ...] = ()


def query(system: System) -> Nvidia:
    """All GPUs of the host. No driver is no GPUs; a driver that fails is a warning that says how."""
    if not any(system.exists(path) for path in DRIVER_FILES):
        return Nvidia()
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Nvidia(
            warnings=(
                f"an NVIDIA driver is present but NVML failed: {error}; no GPU is used. "
                "Start the container with --gpus all (NVIDIA container toolkit), and see that nvidia-smi works in it",
            )
        )
    try:
        return _all(pynvml)
    except pynvml.NVMLError as error:
        return Nvidia(warnings=(f"the NVIDIA driver failed while it listed the GPUs: {error}; no GPU is used",))
    finally:
        pynvml.nvmlShutdown()


def _all(nvml: Any) -> Nvidia:
    gpus, warnings = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpus.append(_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError as error:  # such as "GPU is lost"
            warnings.append(f"GPU {index} cannot be used: {error}; it is left out")
    version = nvml.nvmlSystemGetCudaDriverVersion()
    return Nvidia(
        driver=nvml.nvmlSystemGetDriverVersion(),
        cuda=(version // 1000, version % 1000 // 10),
        gpus=tuple(gpus),
        warnings=tuple(warnings),
    )


def _gpu(nvml: Any, handle: Any) -> Gpu:
    uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    try:
        mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        mig = False
    if not mig:
        return Gpu(uuid=uuid, name=name, memory=_memory(nvml, handle))
    return Gpu(uuid=uuid, name=name, memory=0, mig=True, instances=tuple(_instances(nvml, handle, name)))


def _instances(nvml: Any, handle: Any, name: str) -> Iterator[Gpu]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError_NotFound:  # a place for an instance, with none in it
            continue
        yield Gpu(uuid=nvml.nvmlDeviceGetUUID(instance), name=f"{name} MIG", memory=_memory(nvml, instance))


def _memory(nvml: Any, handle: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError_NotSupported:  # memory shared with the CPU
        return 0


def visible(gpus: Sequence[Gpu], value: str | None) -> tuple[tuple[Gpu, ...], str, str]:
    """The GPUs CUDA enumerates under CUDA_VISIBLE_DEVICES=`value`, why, and a warning or "".

    The rules are CUDA's (programming guide, "CUDA Environment Variables"; torch.cuda reads it alike): indices, or
    beginnings of GPU- or MIG- ids; reading stops at the first that names nothing; one named twice empties the list;
    an empty value hides all. A process gets one MIG instance at most (MIG user guide, "CUDA Device Enumeration").
    """
    if value is None:
        whole = tuple(gpu for gpu in gpus if not gpu.mig)
        instances = tuple(instance for gpu in gpus for instance in gpu.instances)
        if whole:
            return whole, "all of them; CUDA_VISIBLE_DEVICES is not set", ""
        if not instances:
            why = "every GPU is in MIG mode and has no instance" if gpus else "no GPU is on this host"
            return (), why, why if gpus else ""
        return instances[:1], f"the first of {len(instances)} MIG instances: CUDA uses one in a process", ""
    why = f"CUDA_VISIBLE_DEVICES={value}"
    if not value.strip():
        return (), "CUDA_VISIBLE_DEVICES is empty, which hides every GPU", ""
    words = [word.strip() for word in value.split(",")]
    chosen: list[Gpu] = []
    for word in words:
        gpu = _named(gpus, word, mig=words[0].startswith("MIG-"))
        if gpu is None:
            # -1 is the usual way to hide what would follow, or all.
            ignored = f"{why}: {word!r} names no GPU of this host, and CUDA reads no further"
            return tuple(chosen), why, "" if word == "-1" else ignored
        if gpu in chosen:
            return (), why, f"{why}: {word!r} is there twice, for which CUDA hides every GPU"
        chosen.append(gpu)
    if words[0].startswith("MIG-") and len(chosen) > 1:
        return tuple(chosen[:1]), why, f"{why}: CUDA uses one MIG instance in a process, the first"
    return tuple(chosen), why, ""


def _named(gpus: Sequence[Gpu], word: str, *, mig: bool) -> Gpu | None:
    if word.startswith(("GPU-", "MIG-")):
        candidates = [instance for gpu in gpus for instance in gpu.instances] if mig else list(gpus)
        found = [gpu for gpu in candidates if gpu.uuid.startswith(word)]
        return found[0] if len(found) == 1 else None
    # CUDA reads a number as C's strtoul does: "1gpu" is 1.
    digits = re.match(r"\+?\d+", word)
    if digits is None or mig or int(digits[0]) >= len(gpus):
        return None
    gpu = gpus[int(digits[0])]
    return gpu.instances[0] if gpu.instances else gpu
