"""The gate's verdict as a table, as JSON, and as JUnit's XML."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from findings import SEVERITIES, Allowed, Finding, Verdict


def table(verdict: Verdict, image: str, severity: str) -> str:
    """For people: what is from `severity` on, the counts of what is milder, and what to mend in the allowlist."""
    rows: list[tuple[str, ...]] = [("SEVERITY", "ID", "PACKAGE", "VERSION", "FIXED IN", "")]
    rows += [_row(finding, "") for finding in verdict.refused]
    rows += [_row(finding, f"allowed until {entry.expires}: {entry.reason}") for finding, entry in verdict.allowed]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = [image]
    if len(rows) > 1:
        padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
        lines += ["  ".join(row).rstrip() for row in padded]
    milder = [f"{sum(one.severity == name for one in verdict.milder)} {name}" for name in reversed(SEVERITIES)]
    milder = [text for text in milder if not text.startswith("0 ")]
    lines.append(
        f"{len(verdict.refused)} refused, {len(verdict.allowed)} allowed from {severity} on; milder: "
        + (", ".join(milder) or "none")
    )
    lines += [f"allowed, but not found: {entry.id} of {entry.package} (remove the entry)" for entry in verdict.unused]
    return "\n".join(lines)


def _row(finding: Finding, note: str) -> tuple[str, ...]:
    return (finding.severity, finding.id, finding.package, finding.version, finding.fixed or "-", note)


def failure(verdict: Verdict, severity: str, file: Path) -> str:
    """Why the gate is shut, and what opens it."""
    whys = [f"the entry {entry.id} of {entry.package} expired on {entry.expires}" for entry in verdict.expired]
    if verdict.refused:
        whys.append(f"{len(verdict.refused)} vulnerabilities from {severity} on are not allowed")
    return (
        f"error: the image does not pass: {'; '.join(whys)}. Build it anew with the fixed packages ('make lock', "
        f"a newer BASE_IMAGE), or allow each in {file} with a reason and a day on which to look again."
    )


def as_json(verdict: Verdict, image: str, severity: str) -> str:
    """For programs: everything that was found, each with what the gate says to it."""
    said: list[tuple[Finding, str, Allowed | None]] = [(finding, "refused", None) for finding in verdict.refused]
    said += [(finding, "allowed", entry) for finding, entry in verdict.allowed]
    said += [(finding, "milder", None) for finding in verdict.milder]
    findings = [
        {**vars(finding), "verdict": word} | ({"reason": entry.reason, "expires": str(entry.expires)} if entry else {})
        for finding, word, entry in said
    ]
    document = {
        "image": image,
        "severity": severity,
        "passed": verdict.passed,
        "findings": findings,
        "expired": [f"{entry.id} of {entry.package}, {entry.expires}" for entry in verdict.expired],
        "unused": [f"{entry.id} of {entry.package}" for entry in verdict.unused],
    }
    return json.dumps(document, indent=2)


def junit(verdict: Verdict, severity: str, name: str) -> bytes:
    """A test case per finding from `severity` on and per expired entry; one that passes when there is none."""
    suite = ElementTree.Element("testsuite", name=name)

    def case(title: str, kind: str = "", message: str = "") -> None:
        element = ElementTree.SubElement(suite, "testcase", classname=name, name=title)
        if kind:
            ElementTree.SubElement(element, kind, message=message)

    for one in verdict.refused:
        fixed = f"fixed in {one.fixed}" if one.fixed else "no fix is published"
        case(f"{one.id} {one.package}", "failure", f"{one.severity}, {one.package} {one.version}, {fixed}")
    for one, entry in verdict.allowed:
        case(f"{one.id} {one.package}", "skipped", f"allowed until {entry.expires}: {entry.reason}")
    for entry in verdict.expired:
        case(f"allowlist {entry.id} {entry.package}", "failure", f"expired on {entry.expires}: {entry.reason}")
    if not len(suite):
        case(f"nothing from {severity} on")
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(1 for _ in suite.iter(tag))))
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
