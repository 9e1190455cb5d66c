"""The locks agree with constraints.txt, which the tests run with, and hold all that pyproject.toml asks for, hashed."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support import ROOT

REQUIREMENTS = ROOT / "requirements"
LOCKS = ("cpu", "cuda", "build")
# x86_64 Linux: what SageMaker's instances are.
PYTHONS = {"3.11": "3.11.2", "3.12": "3.12.3"}
NOT_IN_THE_TESTS = {"pip", "setuptools", "wheel", "uv"}
"""Tools that constraints.txt may leave to the environment."""


def environment(python: str) -> dict[str, str]:
    given = {
        "python_version": python,
        "python_full_version": PYTHONS[python],
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    return {**{name: str(value) for name, value in default_environment().items()}, **given}


def entries(lock: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Requirement and hashes by name."""
    text = (REQUIREMENTS / f"{lock}.lock").read_text(encoding="utf-8")
    found = {}
    for entry in re.sub(r"\\\n", " ", text).splitlines():
        if not entry or entry.startswith("#"):
            continue
        said, *hashes = re.split(r"\s+--hash=", entry.strip())
        requirement = Requirement(said)
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{lock}.lock has {name} twice"
        found[name] = (requirement, hashes)
    return found


def version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return specifier.version


def constraints() -> dict[str, str]:
    lines = (REQUIREMENTS / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): version(pin) for pin in pins}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_has_hashes(lock: str) -> None:
    assert entries(lock)
    for name, (_, hashes) in entries(lock).items():
        assert hashes, f"{name} has none"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), name


@pytest.mark.parametrize("lock", LOCKS)
def test_versions_are_those_of_the_tests(lock: str) -> None:
    tested = constraints()
    for name, (requirement, _) in entries(lock).items():
        # +cpu is the same torch from another index; CUDA's own packages come with its torch alone.
        locked = version(requirement).removesuffix("+cpu")
        if name in tested:
            assert locked == tested[name], name
        else:
            assert name in NOT_IN_THE_TESTS or name.startswith(("nvidia-", "cuda-")) or name == "triton", name


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", ["cpu", "cuda"])
def test_what_the_toolkit_depends_on_is_in(lock: str, python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["iterable"]]
    locked = entries(lock)
    for requirement in map(Requirement, wanted):
        entry, _ = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version(entry)), requirement
        assert entry.marker is None or entry.marker.evaluate(environment(python)), requirement


def test_the_variants_differ_in_torch_and_cuda_alone() -> None:
    cpu, cuda = ({name: str(said) for name, (said, _) in entries(lock).items()} for lock in ("cpu", "cuda"))
    differ = {name for name in cpu.keys() | cuda.keys() if cpu.get(name) != cuda.get(name)}
    assert "torch" in differ
    assert all(name.startswith(("nvidia-", "cuda-")) or name in {"torch", "triton"} for name in differ), differ
    assert version(entries("cpu")["torch"][0]).endswith("+cpu")


def test_another_python_installs_nothing() -> None:
    """Said by the build before it comes to this: every entry but the CPU torch is for 3.11 and 3.12."""
    other = {**environment("3.12"), "python_version": "3.13", "python_full_version": "3.13.0"}
    for name, (requirement, _) in entries("cuda").items():
        assert requirement.marker is not None and not requirement.marker.evaluate(other), name
