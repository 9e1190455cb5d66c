"""Which libcuda the ranks use: the driver's, or the one that the image brings for an older driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from moorage.cluster.compat import look
from moorage.cluster.system import System

A100 = ("NVIDIA A100-SXM4-40GB",)
COMPAT = "/usr/local/cuda/compat"
THIRTEEN = "/usr/local/cuda-13.0/compat"
BASE_PATH = "/usr/local/nvidia/lib:/usr/local/nvidia/lib64"
"""What NVIDIA's images set LD_LIBRARY_PATH to."""


def an_image(root: Path, libcuda: Mapping[str, str]) -> System:
    """Each folder with the links and the files of NVIDIA's package of that version."""
    for name, version in libcuda.items():
        folder = root / name.lstrip("/")
        folder.mkdir(parents=True)
        (folder / f"libcuda.so.{version}").touch()
        (folder / "libcuda.so.1").symlink_to(f"libcuda.so.{version}")
        (folder / "libcuda.so").symlink_to("libcuda.so.1")
        (folder / f"libnvidia-ptxjitcompiler.so.{version}").touch()
    return System(root=root)


def chosen(system: System, driver: str, *, gpus: Sequence[str] = A100, path: str = "") -> tuple[str, str]:
    folder, reason = look(system, driver=driver, gpus=gpus, library_path=path)
    assert reason is not None
    assert (reason.what, reason.value) == ("cuda-compat", folder or "not used")
    return folder, reason.why


@pytest.mark.parametrize("driver", ["470.256.02", "535.183.01", "550.163.01", "575.57.08", "99.99"])
def test_an_older_driver_gets_the_images_libcuda(tmp_path: Path, driver: str) -> None:
    system = an_image(tmp_path, {COMPAT: "580.95.05"})
    folder, why = chosen(system, driver, path=BASE_PATH)
    assert folder == COMPAT
    assert f"libcuda 580.95.05 is newer than the driver {driver}" in why


@pytest.mark.parametrize("driver", ["580.95.05", "580.65.06", "580.126.09", "590.44.01", "1000.1"])
def test_a_driver_of_the_same_branch_or_a_newer_one_stays(tmp_path: Path, driver: str) -> None:
    folder, why = chosen(an_image(tmp_path, {COMPAT: "580.95.05"}), driver)
    assert folder == ""
    assert driver in why
    assert "580.95.05" in why


@pytest.mark.parametrize("gpu", ["NVIDIA GeForce RTX 4090", "NVIDIA TITAN RTX", "NVIDIA TITAN V"])
def test_it_is_not_for_gpus_of_consumers(tmp_path: Path, gpu: str) -> None:
    system = an_image(tmp_path, {COMPAT: "580.95.05"})
    folder, why = chosen(system, "550.163.01", gpus=(*A100, gpu))
    assert folder == ""
    assert gpu in why


def test_it_is_for_the_gpus_of_sagemaker(tmp_path: Path) -> None:
    system = an_image(tmp_path, {COMPAT: "580.95.05"})
    names = (
        "Tesla T4",
        "NVIDIA A10G",
        "NVIDIA L4",
        "NVIDIA L40S",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H200",
        "NVIDIA B200",
    )
    assert chosen(system, "550.163.01", gpus=names)[0] == COMPAT


def test_a_libcuda_that_the_user_put_first_stays_first(tmp_path: Path) -> None:
    system = an_image(tmp_path, {COMPAT: "580.95.05", "/opt/theirs": "575.57.08", "/opt/old": "550.163.01"})
    for path in (f"/opt/theirs:{BASE_PATH}", f"/x:{COMPAT}", f"{COMPAT}/"):
        folder, why = chosen(system, "550.163.01", path=path)
        assert folder == ""
        assert "LD_LIBRARY_PATH has a libcuda newer than the driver 550.163.01 already" in why
    # The driver's own, as some hosts mount it, is no choice of the user's; nor is a folder relative to nothing.
    assert chosen(system, "550.163.01", path=":opt/theirs:/opt/old:")[0] == COMPAT


def test_the_folder_of_a_toolkit_is_found_without_the_usual_link(tmp_path: Path) -> None:
    assert chosen(an_image(tmp_path, {THIRTEEN: "580.95.05"}), "550.1")[0] == THIRTEEN


def test_of_two_the_newer_is_taken_and_of_equals_the_usual_link(tmp_path: Path) -> None:
    system = an_image(tmp_path, {"/usr/local/cuda-12.9/compat": "575.57.08", THIRTEEN: "580.95.05"})
    assert chosen(system, "550.1")[0] == THIRTEEN
    (tmp_path / "usr/local/cuda").symlink_to("cuda-13.0")
    assert chosen(system, "550.1")[0] == COMPAT
    newer = tmp_path / "usr/local/cuda-12.9/compat/libcuda.so.1100.9"
    newer.touch()
    assert chosen(system, "580.1")[0] == "/usr/local/cuda-12.9/compat", "numbers are compared as numbers"


def test_an_image_without_one_has_nothing_to_say(tmp_path: Path) -> None:
    assert look(System(root=tmp_path), driver="550.1", gpus=A100, library_path="") == ("", None)
    (tmp_path / "usr/local/cuda/compat").mkdir(parents=True)
    (tmp_path / "usr/local/cuda/compat/libcuda.so.1").touch()
    assert look(System(root=tmp_path), driver="550.1", gpus=A100, library_path="") == ("", None)
