"""`make scan` against a server that speaks ECR's API."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import boto3
import pytest

from aws import aws_server
from support import ROOT, HostProcess, JobFolder

REGION = "eu-west-1"
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {"digest": "sha256:" + "c" * 64, "size": 2},
    "layers": [],
}
DIGEST = "sha256:" + "d" * 64
MOTOS_OWN = ("CVE-9999-9999", "moto_fake")
"""What moto finds in every image, of severity HIGH."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server() as endpoint:
        yield endpoint


@dataclass
class Gate:
    """An image that was pushed, and the command. folder: of the reports."""

    endpoint: str
    folder: Path
    client: Any

    def put(self, *, scanned: bool = True) -> None:
        self.client.put_image(
            repositoryName="moorage", imageManifest=json.dumps(MANIFEST), imageTag="cpu-1", imageDigest=DIGEST
        )
        if scanned:
            self.client.start_image_scan(repositoryName="moorage", imageId={"imageDigest": DIGEST})

    def finds(self, status: str, *findings: tuple[str, str, str]) -> None:
        """What the next scan says. findings: id, package, severity."""
        listed = [
            {"name": id, "severity": severity, "attributes": [{"key": "package_name", "value": package}]}
            for id, package, severity in findings
        ]
        result = {
            "repositoryName": "moorage", "imageId": {"imageTag": "cpu-1"},
            "imageScanStatus": {"status": status, "description": "said by the test"},
            "imageScanFindings": {"findings": listed},
        }  # fmt: skip
        tell(self.endpoint, "static/ecr/scan-finding-results", {"results": [result], "region": REGION})

    def allow(self, id: str, package: str, days: int = 30) -> None:
        expires = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)
        entry = {"id": id, "package": package, "reason": "said by the test", "expires": str(expires)}
        (self.folder / "allowed.json").write_text(json.dumps([entry]))

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "image" / "scan.py"), *arguments],
            env={
                "PATH": os.environ["PATH"], "AWS_ENDPOINT_URL": self.endpoint, "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "hunter22", "AWS_MAX_ATTEMPTS": "1",
                "REPORTS": str(self.folder), "SCAN_ALLOWED": str(self.folder / "allowed.json"), **env,
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def __call__(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=60)
        assert b"Traceback" not in err, err.decode()
        return subprocess.CompletedProcess(process.args, process.returncode, out.decode(), err.decode())

    def junit(self) -> dict[str, str]:
        """Kind of every test case: passed, failure, skipped."""
        suite = ElementTree.parse(self.folder / "scan-cpu.xml").getroot()
        cases = {case.get("name"): case[0].tag if len(case) else "passed" for case in suite}
        assert suite.get("tests") == str(len(cases))
        assert suite.get("failures") == str(list(cases.values()).count("failure"))
        return cases


def tell(endpoint: str, path: str, body: Any) -> None:
    request = urllib.request.Request(
        f"{endpoint}/moto-api/{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).close()


@pytest.fixture
def gate(endpoint: str, tmp_path: Path) -> Iterator[Gate]:
    tell(endpoint, "reset", {})
    client = boto3.client(
        "ecr", endpoint_url=endpoint, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
    )
    client.create_repository(repositoryName="moorage")
    at = {"account": "123456789012", "region": REGION, "name": "moorage", "scans_on_push": True}
    pushed = {"image": f"host/moorage@{DIGEST}", "digest": DIGEST, "tag": "cpu-1", "revision": "1", "ecr": at}
    (tmp_path / "image-cpu.json").write_text(json.dumps(pushed))
    (tmp_path / "allowed.json").write_text("[]")
    yield Gate(endpoint, tmp_path, client)
    client.close()


def test_a_vulnerability_that_nobody_allowed_shuts_the_gate(gate: Gate) -> None:
    gate.put()
    run = gate()
    assert run.returncode == 1
    assert "CVE-9999-9999" in run.stdout
    assert "moto_fake" in run.stdout
    assert "1 refused" in run.stdout
    assert "error: the image does not pass: 1 vulnerabilities from HIGH on are not allowed" in run.stderr
    assert gate.junit() == {"CVE-9999-9999 moto_fake": "failure"}


def test_an_allowed_one_passes_until_its_day(gate: Gate) -> None:
    gate.put()
    gate.allow(*MOTOS_OWN)
    run = gate()
    assert run.returncode == 0, run.stderr
    assert "allowed until" in run.stdout
    assert gate.junit() == {"CVE-9999-9999 moto_fake": "skipped"}

    gate.allow(*MOTOS_OWN, days=-1)
    run = gate()
    assert run.returncode == 1
    assert "the entry CVE-9999-9999 of moto_fake expired on" in run.stderr
    assert gate.junit() == {"CVE-9999-9999 moto_fake": "failure", "allowlist CVE-9999-9999 moto_fake": "failure"}


def test_milder_ones_pass_and_unused_entries_are_told(gate: Gate) -> None:
    gate.put()
    gate.finds("COMPLETE", ("CVE-1", "zlib1g", "MEDIUM"), ("CVE-2", "zlib1g", "LOW"))
    gate.allow("CVE-3", "gone")
    run = gate()
    assert run.returncode == 0, run.stderr
    assert "milder: 1 MEDIUM, 1 LOW" in run.stdout
    assert "CVE-3 of gone (remove the entry)" in run.stdout
    assert gate.junit() == {"nothing from HIGH on": "passed"}
    assert gate(SCAN_SEVERITY="medium").returncode == 1


def test_json(gate: Gate) -> None:
    gate.put()
    gate.allow(*MOTOS_OWN)
    run = gate("--json")
    document = json.loads(run.stdout)
    assert document["passed"] is True
    (found,) = document["findings"]
    assert (found["id"], found["package"], found["verdict"]) == (*MOTOS_OWN, "allowed")
    assert found["reason"] == "said by the test"


def test_it_waits_for_the_scan(gate: Gate) -> None:
    gate.allow(*MOTOS_OWN)
    process = gate.start()
    watched = HostProcess(folder=JobFolder(gate.folder / "ml"), process=process)
    watched.wait_for("waiting for the scan of moorage@")
    gate.put(scanned=False)
    gate.client.start_image_scan(repositoryName="moorage", imageId={"imageDigest": DIGEST})
    assert watched.ends() == 0, watched.report()


def test_it_has_an_image_scanned_that_its_repository_does_not_scan(gate: Gate) -> None:
    gate.put(scanned=False)
    path = gate.folder / "image-cpu.json"
    pushed = json.loads(path.read_text())
    pushed["ecr"]["scans_on_push"] = False
    path.write_text(json.dumps(pushed))
    gate.allow(*MOTOS_OWN)
    assert gate().returncode == 0


def test_a_scan_that_does_not_end(gate: Gate) -> None:
    gate.put()
    gate.finds("IN_PROGRESS")
    run = gate(SCAN_MINUTES="0.02")
    assert run.returncode == 77
    assert "did not end within 0.02 minutes. its status is IN_PROGRESS" in run.stderr
    assert "SCAN_MINUTES" in run.stderr


@pytest.mark.parametrize("status", ["FAILED", "UNSUPPORTED_IMAGE"])
def test_a_scan_that_fails(gate: Gate, status: str) -> None:
    gate.put()
    gate.finds(status)
    run = gate()
    assert run.returncode == 77
    assert f"{status}: said by the test" in run.stderr
    assert run.stdout == ""


def test_what_was_not_pushed_to_ecr(gate: Gate) -> None:
    path = gate.folder / "image-cpu.json"
    path.write_text(json.dumps({"image": "localhost:5000/moorage@sha256:1", "ecr": None}))
    run = gate()
    assert run.returncode == 78
    assert "localhost:5000/moorage@sha256:1 is not in ECR" in run.stderr
    path.unlink()
    run = gate()
    assert run.returncode == 78
    assert "nothing was pushed. `make push` first" in run.stderr


def test_settings_that_are_none(gate: Gate) -> None:
    assert "SCAN_SEVERITY=GRAVE is not a severity" in gate(SCAN_SEVERITY="grave").stderr
    assert "SCAN_MINUTES=soon is not a number" in gate(SCAN_MINUTES="soon").stderr


def test_aws_is_not_reached(gate: Gate) -> None:
    run = gate(AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert run.returncode == 77
    assert "AWS is not reached" in run.stderr


def test_the_wait_is_bounded_even_without_an_image(gate: Gate) -> None:
    run = gate(SCAN_MINUTES="0")
    assert run.returncode == 77
    assert "ECR has none of this image" in run.stderr
