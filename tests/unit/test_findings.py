"""The rules of `make scan`: what a scan found against what is allowed."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from findings import SEVERITIES, Allowed, Finding, judge, parse, read_allowed
from hypothesis import given
from hypothesis import strategies as some

from moorage.errors import ConfigError
from support import ROOT

TODAY = datetime.date(2026, 6, 15)


def finding(id: str = "CVE-1", package: str = "libc6", severity: str = "HIGH") -> Finding:
    return Finding(id=id, package=package, version="1", severity=severity)


def allowed(id: str = "CVE-1", package: str = "libc6", expires: datetime.date = TODAY) -> Allowed:
    return Allowed(id=id, package=package, reason="not reached by us", expires=expires)


def verdict(found: list[Finding], entries: list[Allowed] | None = None, severity: str = "HIGH") -> Any:
    return judge(found, entries or [], severity=severity, today=TODAY)


def test_nothing_found_passes() -> None:
    assert verdict([]).passed


@pytest.mark.parametrize("severity", ["HIGH", "CRITICAL", "SOMETHING NEW"])
def test_from_the_severity_on_is_refused(severity: str) -> None:
    said = verdict([finding(severity=severity)])
    assert not said.passed
    assert [one.severity for one in said.refused] == [severity]


@pytest.mark.parametrize("severity", ["MEDIUM", "LOW", "INFORMATIONAL", "UNDEFINED"])
def test_what_is_milder_passes_and_is_counted(severity: str) -> None:
    said = verdict([finding(severity=severity)])
    assert said.passed
    assert len(said.milder) == 1
    assert not verdict([finding(severity=severity)], severity="UNDEFINED").passed


def test_an_entry_allows_its_vulnerability_of_its_package_only() -> None:
    assert verdict([finding()], [allowed()]).passed
    assert not verdict([finding("CVE-2")], [allowed()]).passed
    assert not verdict([finding(package="zlib1g")], [allowed()]).passed


def test_an_entry_holds_until_the_end_of_its_day() -> None:
    assert verdict([finding()], [allowed(expires=TODAY)]).passed
    said = verdict([finding()], [allowed(expires=TODAY - datetime.timedelta(days=1))])
    assert not said.passed
    assert [one.id for one in said.refused] == ["CVE-1"]
    assert [one.id for one in said.expired] == ["CVE-1"]


def test_an_expired_entry_shuts_the_gate_even_if_it_matches_nothing() -> None:
    said = verdict([], [allowed(expires=TODAY - datetime.timedelta(days=1))])
    assert not said.passed
    assert said.unused == ()


def test_an_entry_that_matches_nothing_is_reported() -> None:
    said = verdict([], [allowed()])
    assert said.passed
    assert [one.id for one in said.unused] == ["CVE-1"]


findings = some.builds(
    Finding,
    id=some.sampled_from(["CVE-1", "CVE-2", "CVE-3"]),
    package=some.sampled_from(["libc6", "zlib1g"]),
    version=some.just("1"),
    severity=some.sampled_from(SEVERITIES),
)
entries = some.builds(
    Allowed,
    id=some.sampled_from(["CVE-1", "CVE-2", "CVE-3"]),
    package=some.sampled_from(["libc6", "zlib1g"]),
    reason=some.just("why"),
    expires=some.dates(datetime.date(2026, 6, 1), datetime.date(2026, 6, 30)),
)


@given(some.lists(findings), some.lists(entries, unique_by=lambda one: (one.id, one.package)))
def test_every_finding_is_in_one_place_and_nothing_passes_without_a_valid_entry(
    found: list[Finding], given_entries: list[Allowed]
) -> None:
    said = verdict(found, given_entries)
    placed = [*said.refused, *(one for one, _ in said.allowed), *said.milder]
    assert sorted(placed) == sorted(set(found))
    assert all(one.severity not in ("HIGH", "CRITICAL") for one in said.milder)
    for one, entry in said.allowed:
        assert (one.id, one.package) == (entry.id, entry.package)
        assert entry.expires >= TODAY


def test_a_basic_scan() -> None:
    attributes = [{"key": "package_name", "value": "openssl"}, {"key": "package_version", "value": "3.0.1"}]
    answer = {"imageScanFindings": {"findings": [{"name": "CVE-7", "severity": "LOW", "attributes": attributes}]}}
    assert parse(answer) == [Finding(id="CVE-7", package="openssl", version="3.0.1", severity="LOW")]


def test_an_enhanced_scan() -> None:
    def enhanced(**more: Any) -> dict[str, Any]:
        packages = [
            {"name": "torch", "version": "2.0", "fixedInVersion": "2.1"},
            {"name": "numpy", "version": "1.0", "fixedInVersion": "NotAvailable"},
        ]
        details = {"vulnerabilityId": "CVE-8", "vulnerablePackages": packages}
        return {"severity": "HIGH", "status": "ACTIVE", "packageVulnerabilityDetails": details} | more

    found = parse(
        {
            "imageScanFindings": {
                "enhancedFindings": [enhanced(), enhanced(status="SUPPRESSED"), enhanced(status="CLOSED")]
            }
        }
    )
    assert found == [
        Finding(id="CVE-8", package="torch", version="2.0", severity="HIGH", fixed="2.1"),
        Finding(id="CVE-8", package="numpy", version="1.0", severity="HIGH"),
    ]
    (untriaged,) = {
        one.severity for one in parse({"imageScanFindings": {"enhancedFindings": [enhanced(severity="UNTRIAGED")]}})
    }
    assert untriaged == "UNDEFINED"


ENTRY = {"id": "CVE-1", "package": "libc6", "reason": "not reached by us", "expires": "2026-06-15"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is not valid JSON"),
        ("{}", "is not a list"),
        ("[1]", "entry 1 of the allowlist"),
        (json.dumps([ENTRY, {**ENTRY, "because": "x"}]), "entry 2 of the allowlist"),
        (json.dumps([{**ENTRY, "reason": " "}]), "has no reason"),
        (json.dumps([{**ENTRY, "expires": "never"}]), "expires on 'never'"),
        (json.dumps([{**ENTRY, "expires": "2026-02-30"}]), "expires on '2026-02-30'"),
        (json.dumps([{**ENTRY, "expires": "20260615"}]), "expires on '20260615'"),
        (json.dumps([ENTRY, ENTRY]), "names CVE-1 of libc6 again"),
    ],
)
def test_an_allowlist_that_is_not_one(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "allowed.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_allowed(path)


def test_an_allowlist(tmp_path: Path) -> None:
    path = tmp_path / "allowed.json"
    with pytest.raises(ConfigError, match="cannot read the allowlist"):
        read_allowed(path)
    path.write_text(json.dumps([ENTRY]))
    assert read_allowed(path) == [allowed()]


def test_ours_can_be_read() -> None:
    read_allowed(ROOT / "image" / "allowed-vulnerabilities.json")
