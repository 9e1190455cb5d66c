"""What every tier shares: a clean environment, the chaos counts, and word of what was left out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import hypothesis
import pytest

FULL = os.environ.get("MOORAGE_CHAOS") == "full"

STRATEGIES = ("ddp", "fsdp") if FULL else ("fsdp",)
"""Of the kill and stop tests: the short pass tries the one that has more to lose, `make chaos` both."""

JOB_VARIABLES = re.compile(
    r"(MOORAGE(?!_(CHAOS|TEST_IMAGE)$)|SM|SAGEMAKER|TORCHELASTIC|NCCL|GLOO|ACCELERATE|AWS|PET)_.*"
    r"|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_.*|MASTER_ADDR|MASTER_PORT"
    r"|CUDA_VISIBLE_DEVICES|TRAINING_JOB_NAME"
)
"""Variables of a job, which must come from the test and not from the shell that runs it."""


# A test is not wrong because the machine is busy.
hypothesis.settings.register_profile("moorage", deadline=None)
hypothesis.settings.load_profile("moorage")


@pytest.fixture(autouse=True, scope="session")
def _no_job_around() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if JOB_VARIABLES.fullmatch(name)]:
            patch.delenv(name)
        # Without it boto3 asks an address outside this machine for credentials, and waits.
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        # Two ranks on two cores: torch's own choice of threads would have them fight.
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def _no_session_of_another_test() -> Iterator[None]:
    """boto3's default one keeps the credentials it has found."""
    yield
    if boto3 := sys.modules.get("boto3"):
        setattr(boto3, "DEFAULT_SESSION", None)  # noqa: B010 - mypy knows no such thing of a module


@pytest.fixture
def chaos_count(request: pytest.FixtureRequest) -> int:
    """How often to repeat: the marker says `@pytest.mark.full(20, short=2)`; `make chaos` takes the first."""
    marker = request.node.get_closest_marker("full")
    assert marker is not None and marker.args, "mark the test: @pytest.mark.full(20, short=2)"
    return int(marker.args[0] if FULL else marker.kwargs.get("short", 1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FULL:
        return
    terminalreporter.section("left out")
    terminalreporter.line("full counts of the kill and stop tests: `make chaos`")
