"""What a scan found against what is allowed: the rules of `make scan`, without AWS."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.errors import ConfigError

SEVERITIES = ("UNDEFINED", "INFORMATIONAL", "LOW", "MEDIUM", "HIGH", "CRITICAL")
"""Mildest first. UNDEFINED, in enhanced scans UNTRIAGED: nobody has judged it yet."""

_KEYS = ("id", "package", "reason", "expires")


@dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """One vulnerability of one package. fixed: the first version without it, "" while there is none."""

    id: str
    package: str
    version: str
    severity: str
    fixed: str = ""

    @property
    def rank(self) -> int:
        """Its place in SEVERITIES. What is not there counts as the worst: it must not pass because it is not known."""
        return SEVERITIES.index(self.severity) if self.severity in SEVERITIES else len(SEVERITIES) - 1


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """An entry of the allowlist: this vulnerability of this package passes until the end of that day, UTC."""

    id: str
    package: str
    reason: str
    expires: datetime.date


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says. It is passed when nothing is refused and no entry has expired."""

    refused: tuple[Finding, ...]
    allowed: tuple[tuple[Finding, Allowed], ...]
    milder: tuple[Finding, ...]
    expired: tuple[Allowed, ...]
    unused: tuple[Allowed, ...]
    """Entries that match nothing: the vulnerability is gone, or the entry is misspelt."""

    @property
    def passed(self) -> bool:
        return not self.refused and not self.expired


def judge(found: Sequence[Finding], allowed: Sequence[Allowed], *, severity: str, today: datetime.date) -> Verdict:
    """Findings from `severity` on are refused, unless an entry that has not expired allows them."""
    expired = tuple(entry for entry in allowed if entry.expires < today)
    valid = {(entry.id, entry.package): entry for entry in allowed if entry not in expired}
    refused, passed, milder, used = [], [], [], set()
    for finding in sorted(set(found), key=lambda one: (-one.rank, one)):
        entry = valid.get((finding.id, finding.package))
        used.add((finding.id, finding.package))
        if finding.rank < SEVERITIES.index(severity):
            milder.append(finding)
        elif entry:
            passed.append((finding, entry))
        else:
            refused.append(finding)
    return Verdict(
        refused=tuple(refused),
        allowed=tuple(passed),
        milder=tuple(milder),
        expired=expired,
        unused=tuple(entry for key, entry in valid.items() if key not in used),
    )


def parse(answer: dict[str, Any]) -> list[Finding]:
    """Findings of an answer of DescribeImageScanFindings, of a basic or an enhanced scan.

    https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeImageScanFindings.html
    """
    scan = answer.get("imageScanFindings", {})
    return [_basic(one) for one in scan.get("findings", [])] + [
        finding for one in scan.get("enhancedFindings", []) for finding in _enhanced(one)
    ]


def _basic(one: dict[str, Any]) -> Finding:
    attributes = {pair["key"]: pair.get("value", "") for pair in one.get("attributes", [])}
    return Finding(
        id=one["name"],
        package=attributes.get("package_name", ""),
        version=attributes.get("package_version", ""),
        severity=one.get("severity", "UNDEFINED"),
    )


def _enhanced(one: dict[str, Any]) -> list[Finding]:
    """One per package. Those that a suppression rule of Amazon Inspector hides stay hidden."""
    if one.get("status", "ACTIVE") != "ACTIVE":
        return []
    severity = one.get("severity", "UNDEFINED")
    details = one.get("packageVulnerabilityDetails", {})
    return [
        Finding(
            id=details.get("vulnerabilityId") or one.get("title", ""),
            package=package.get("name", ""),
            version=package.get("version", ""),
            severity="UNDEFINED" if severity == "UNTRIAGED" else severity,
            fixed="" if package.get("fixedInVersion", "NotAvailable") == "NotAvailable" else package["fixedInVersion"],
        )
        for package in details.get("vulnerablePackages") or [{}]
    ]


def read_allowed(path: Path) -> list[Allowed]:
    """The allowlist. Raises ConfigError that names the entry which is not as it has to be."""
    fix = f"each entry has {', '.join(_KEYS)}: see docs/shipping.md"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the allowlist {path}", why=str(error.strerror), fix="correct SCAN_ALLOWED"
        ) from None
    except ValueError as error:
        raise ConfigError(f"the allowlist {path} is not valid JSON", why=str(error), fix=fix) from None
    if not isinstance(entries, list):
        raise ConfigError(f"the allowlist {path} is not a list", fix=fix)
    allowed: dict[tuple[str, str], Allowed] = {}
    for number, entry in enumerate(entries, 1):
        what = f"entry {number} of the allowlist {path}"
        one = _allowed(entry, what, fix)
        if (one.id, one.package) in allowed:
            raise ConfigError(f"{what} names {one.id} of {one.package} again", fix="leave one of the two")
        allowed[one.id, one.package] = one
    return list(allowed.values())


def _allowed(entry: object, what: str, fix: str) -> Allowed:
    if not isinstance(entry, dict) or set(entry) != set(_KEYS):
        raise ConfigError(f"{what} has not the keys it should", why=f"it is {entry!r}", fix=fix)
    for key, value in entry.items():
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{what} has no {key}", fix=fix)
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", entry["expires"]):
            raise ValueError
        expires = datetime.date.fromisoformat(entry["expires"])
    except ValueError:
        raise ConfigError(f"{what} expires on {entry['expires']!r}", fix="give a day as 2026-12-31") from None
    return Allowed(id=entry["id"], package=entry["package"], reason=entry["reason"], expires=expires)
