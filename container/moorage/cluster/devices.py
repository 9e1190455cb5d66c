"""What the ranks compute on: NVIDIA GPUs, Neuron devices, else the CPU."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moorage.cluster import compat, nvidia
from moorage.cluster.reasons import Reason, size
from moorage.cluster.system import System

GPU_INSTANCES = re.compile(r"ml\.[gp]\d")
NEURON_INSTANCES = re.compile(r"ml\.(trn|inf)\d")


@dataclass(frozen=True, kw_only=True)
class Devices:
    """names and memory (bytes, 0 is not known): one each per device, in CUDA's order. The CPU counts as one device.

    driver: version of the NVIDIA driver, empty where there is none. compat: folder of the libcuda to use instead of the
    driver's, if any.
    """

    kind: Literal["cuda", "neuron", "cpu"]
    names: tuple[str, ...]
    memory: tuple[int, ...]
    driver: str = ""
    compat: str = ""

    @property
    def count(self) -> int:
        return len(self.names)

    def described(self) -> str:
        if self.kind == "cpu":
            return self.names[0]
        return " + ".join(f"{number} x {name}" for name, number in Counter(self._each()).items())

    def _each(self) -> list[str]:
        return [
            f"{name} {size(memory)}" if memory else name for name, memory in zip(self.names, self.memory, strict=True)
        ]


def look(
    system: System, env: Mapping[str, str], *, instance_type: str, memory: int
) -> tuple[Devices, tuple[Reason, ...], tuple[str, ...]]:
    """The devices, the reasons and the warnings. memory: the host's, which is the CPU's."""
    found = nvidia.query(system)
    seen, why, ignored = nvidia.visible(found.gpus, env.get("CUDA_VISIBLE_DEVICES"))
    neuron = tuple(name for name in system.names("dev", "neuron*") if re.fullmatch(r"neuron\d+", name))
    warnings = [*found.warnings, *([ignored] if ignored and found.gpus else [])]
    compat_why: Reason | None = None
    if seen:
        names = tuple(gpu.name for gpu in seen)
        library_path = env.get("LD_LIBRARY_PATH", "")
        folder, compat_why = compat.look(system, driver=found.driver, gpus=names, library_path=library_path)
        devices = Devices(
            kind="cuda",
            names=names,
            memory=tuple(gpu.memory for gpu in seen),
            driver=found.driver,
            compat=folder,
        )
        why = f"{why}; driver {found.driver}, CUDA {found.cuda[0]}.{found.cuda[1]}"
        warnings += torch_trouble(torch_build(), found, compat=folder)
    elif neuron:
        devices = Devices(kind="neuron", names=("Neuron",) * len(neuron), memory=(0,) * len(neuron))
        why = f"/dev/{neuron[0]} to {neuron[-1]}; for a rank per core set MOORAGE_RANKS_PER_HOST"
    else:
        devices = Devices(kind="cpu", names=(_cpu_name(system),), memory=(memory,), driver=found.driver)
        why = why if found.gpus else ("the NVIDIA driver failed" if found.warnings else "no NVIDIA driver, no Neuron")
        warnings += _disappointed(instance_type, hidden=bool(found.gpus))
    reasons = (Reason(what="devices", value=devices.described(), why=why), *([compat_why] if compat_why else []))
    return devices, reasons, tuple(warnings)


def torch_build() -> str | None:
    """The CUDA version the installed torch was built for, "" for a CPU build, None where there is no torch.

    Read from torch/version.py: importing torch takes seconds.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b[^=]*=\s*(?:None|['\"]([\d.]+)['\"])", text, re.MULTILINE)
    return (match[1] or "") if match else None


def torch_trouble(build: str | None, found: nvidia.Nvidia, *, compat: str = "") -> list[str]:
    """Why the GPUs found could not be used by this torch: said at the start, where it costs seconds and not hours.

    compat: the folder whose libcuda is used, which is made for the image's CUDA.
    """
    if build == "":
        return [f"{len(found.gpus)} GPUs are here, but torch is a CPU build and will not use them"]
    if build and not compat and int(build.split(".")[0]) > found.cuda[0] > 0:
        return [
            f"torch is built for CUDA {build}, the driver {found.driver} serves CUDA {found.cuda[0]}.{found.cuda[1]} "
            "at most: use an image for that CUDA, one with NVIDIA's cuda-compat package (the default base of the CUDA "
            "variant has it), or an instance type with a newer driver"
        ]
    return []


def _disappointed(instance_type: str, *, hidden: bool) -> list[str]:
    if GPU_INSTANCES.match(instance_type) and not hidden:
        return [f"{instance_type} has GPUs, but none can be used here: training would run on the CPU"]
    if NEURON_INSTANCES.match(instance_type):
        return [f"{instance_type} has Neuron devices, but there is no /dev/neuron*: training would run on the CPU"]
    return []


def _cpu_name(system: System) -> str:
    for line in (system.text("proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"
