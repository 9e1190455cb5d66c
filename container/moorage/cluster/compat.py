"""CUDA's forward compatibility: the newer libcuda that an image brings for hosts whose driver is older than its CUDA.

NVIDIA, "CUDA Compatibility", chapter "Forward Compatibility". Its container toolkit mounted these libraries by itself
until 1.17.4; since then it is left to the image (SageMaker, "Updating inference containers to comply with the NVIDIA
Container Toolkit").
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from moorage.cluster.reasons import Reason
from moorage.cluster.system import System

UNSUPPORTED = re.compile(r"GeForce|TITAN", re.IGNORECASE)
"""It is for data center GPUs: CUDA does not start on others (error 804). With an older driver, NVIDIA's own images for
CUDA 13 accept every brand but these (NVIDIA_REQUIRE_CUDA)."""


def look(system: System, *, driver: str, gpus: Sequence[str], library_path: str) -> tuple[str, Reason | None]:
    """The folder that the ranks need first in LD_LIBRARY_PATH, or "", and why; no reason where an image has none.

    driver: version of the host's. gpus: names of those that CUDA will see. library_path: LD_LIBRARY_PATH as it is.
    """
    toolkits = ("cuda", *system.names("usr/local", "cuda-*"))
    folders = [f"/usr/local/{toolkit}/compat" for toolkit in toolkits]
    brought = {folder: version for folder in folders if (version := _libcuda(system, folder))}
    if not brought:
        return "", None
    folder = max(brought, key=lambda name: _numbers(brought[name]))  # the first of equals: cuda is a link to cuda-13.0
    # As NVIDIA's container toolkit decides: within one branch, such as 580, nothing is gained.
    if _branch(brought[folder]) <= _branch(driver):
        return _unused(f"the driver {driver} is not of an older branch than libcuda {brought[folder]} in {folder}")
    yours = [name for name in library_path.split(":") if _branch(_libcuda(system, name)) > _branch(driver)]
    if yours:
        return _unused(f"LD_LIBRARY_PATH has a libcuda newer than the driver {driver} already, in {yours[0]}")
    unfit = [gpu for gpu in gpus if UNSUPPORTED.search(gpu)]
    if unfit:
        return _unused(f"it is for data center GPUs, and here is {unfit[0]}")
    why = f"its libcuda {brought[folder]} is newer than the driver {driver}: first in the ranks' LD_LIBRARY_PATH"
    return folder, Reason(what="cuda-compat", value=folder, why=why)


def _unused(why: str) -> tuple[str, Reason]:
    return "", Reason(what="cuda-compat", value="not used", why=why)


def _libcuda(system: System, folder: str) -> str:
    """Version of the libcuda in `folder`, such as 580.95.05; empty where there is none."""
    names = system.names(folder.lstrip("/"), "libcuda.so.*") if folder.startswith("/") else ()
    found = (re.fullmatch(r"libcuda\.so\.(\d+(?:\.\d+)+)", name) for name in names)
    return max((match[1] for match in found if match), key=_numbers, default="")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _branch(version: str) -> int:
    """580 of 580.95.05; 0 of an empty version."""
    return next(iter(_numbers(version)), 0)
