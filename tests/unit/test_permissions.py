"""docs/iam.md is made of the calls in the code, and every module that makes one is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import permissions
from permissions import COMMANDS, HOME, JOB_MODULES, PAGE, actions, needed, of_the_job, page, policy

NO_CALLS = {"rehearsal/containers.py"}
"""What it asks is docker's."""


def test_the_page_is_as_the_code_makes_it() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python tests/permissions.py --write"


def test_every_module_that_has_a_client_is_of_some_command_or_of_the_job() -> None:
    has_client = re.compile(r"\bclient\(\"|boto3\.client|self\._(client|sagemaker|s3|logs|bucket)\b.*=")
    known = {module for modules, _ in COMMANDS.values() for module in modules} | set(JOB_MODULES) | NO_CALLS
    found = {str(path.relative_to(HOME)) for path in HOME.rglob("*.py") if has_client.search(path.read_text())}
    calls = {module for module in found if actions(module)}
    assert calls <= known, "give them to a command in tests/permissions.py"
    assert len(calls) >= 9


@pytest.mark.parametrize(
    ("command", "action"),
    [
        ("`moorage submit`", "sagemaker:CreateTrainingJob"),
        ("`moorage submit`", "iam:PassRole"),
        ("`moorage tune`", "sagemaker:CreateHyperParameterTuningJob"),
        ("`moorage status`, `logs`, `stop`, `list`", "logs:GetLogEvents"),
        ("`moorage status`, `logs`, `stop`, `list`", "sagemaker:StopTrainingJob"),
        ("`moorage deploy`, `undeploy`", "sagemaker:UpdateEndpoint"),
        ("`moorage deploy`, `undeploy`", "application-autoscaling:PutScalingPolicy"),
        ("`moorage predict --endpoint`", "sagemaker:InvokeEndpoint"),
        ("`moorage push`, `make push`, `make scan`", "ecr:GetAuthorizationToken"),
    ],
)
def test_what_is_known_to_be_needed_is_found(command: str, action: str) -> None:
    assert action in needed(command)


def test_the_job_may_do_what_checkpoints_in_s3_take() -> None:
    assert {
        "s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:DeleteObject", "s3:AbortMultipartUpload",
        "ecr:BatchGetImage", "logs:PutLogEvents",
    } <= of_the_job()  # fmt: skip


def test_a_policy_is_on_the_least_that_an_action_can_be_given_on() -> None:
    made = policy(needed("`moorage submit`"))["Statement"]
    by_action = {action: one for one in made for action in one["Action"]}
    assert by_action["iam:PassRole"]["Condition"]["StringEquals"]["iam:PassedToService"] == "sagemaker.amazonaws.com"
    assert by_action["s3:ListBucket"]["Resource"] == "arn:aws:s3:::BUCKET"
    assert by_action["s3:PutObject"]["Resource"] == "arn:aws:s3:::BUCKET/*"
    assert by_action["sagemaker:CreateTrainingJob"]["Resource"].endswith(":training-job/*")
    everywhere = {action for one in made if one["Resource"] == "*" for action in one["Action"]}
    assert everywhere == {"sts:GetCallerIdentity", "sagemaker:ListTrainingJobs"}, "those that have no resource"


def test_a_call_that_is_new_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new.py").write_text("client.delete_bucket(Bucket='b')\nclient.download_file()\n")
    monkeypatch.setattr(permissions, "HOME", tmp_path)
    assert actions("new.py") == {"s3:DeleteBucket", "s3:GetObject", "s3:ListBucket"}
