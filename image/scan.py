"""The gate: fails for a vulnerability that ECR found in the pushed image and that nobody allowed. `make scan`.

    VARIANT        whose image: the one that image-<variant>.json names, which `make push` wrote
    SCAN_SEVERITY  the mildest that fails, default HIGH
    SCAN_MINUTES   how long to wait for ECR's scan, default 15
    SCAN_ALLOWED   the allowlist, default image/allowed-vulnerabilities.json
    REPORTS        the folder of image-<variant>.json and scan-<variant>.xml, default build/reports

Prints a table, or JSON, and writes scan-<variant>.xml, for readers of JUnit's XML.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from findings import SEVERITIES, judge, parse, read_allowed
from verdict import as_json, failure, junit, table

from moorage.cloud.ecr import Ecr
from moorage.errors import CloudError, ConfigError, MoorageError

HERE = Path(__file__).resolve().parent
SLOWEST_SECONDS = 10.0

_DONE = {"COMPLETE", "ACTIVE"}
"""ACTIVE: an enhanced scan that has findings, and goes on as new vulnerabilities are published."""
_WAITING = {"", "IN_PROGRESS", "PENDING"}


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the pushed image; the exit code is 0 when it passes, 1 when not, or that of the error."""
    parser = argparse.ArgumentParser("make scan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON, with the findings that are too mild to fail")
    arguments = parser.parse_args(argv)
    try:
        return scan(os.environ, machine=arguments.json)
    except MoorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def scan(env: Mapping[str, str], *, machine: bool) -> int:
    """The whole of it. Raises ConfigError or CloudError."""
    variant = env.get("VARIANT") or "cpu"
    severity = (env.get("SCAN_SEVERITY") or "HIGH").upper()
    if severity not in SEVERITIES:
        raise ConfigError(f"SCAN_SEVERITY={severity} is not a severity", fix=f"use one of {', '.join(SEVERITIES)}")
    try:
        minutes = float(env.get("SCAN_MINUTES") or 15)
    except ValueError:
        raise ConfigError(f"SCAN_MINUTES={env['SCAN_MINUTES']} is not a number", fix="give minutes, as 15") from None
    file = Path(env.get("SCAN_ALLOWED") or HERE / "allowed-vulnerabilities.json")
    allowed = read_allowed(file)
    reports = Path(env.get("REPORTS") or "build/reports")
    pushed = read_pushed(reports / f"image-{variant}.json")
    found = parse(await_findings(env, pushed, seconds=minutes * 60))
    verdict = judge(found, allowed, severity=severity, today=datetime.datetime.now(datetime.UTC).date())
    (reports / f"scan-{variant}.xml").write_bytes(junit(verdict, severity, f"scan-{variant}"))
    print((as_json if machine else table)(verdict, pushed["image"], severity))
    if not verdict.passed:
        print(failure(verdict, severity, file), file=sys.stderr)
    return 0 if verdict.passed else 1


def read_pushed(path: Path) -> dict[str, Any]:
    """What `make push` wrote. Raises ConfigError when it pushed nothing, or not to ECR."""
    try:
        pushed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing", why="nothing was pushed", fix="`make push` first, with the same VARIANT"
        ) from None
    if not pushed.get("ecr"):
        raise ConfigError(
            f"{pushed.get('image')} is not in ECR",
            why="it is ECR that scans images for this gate",
            fix="push to ECR (leave out REGISTRY), or have that registry's own scanner decide",
        )
    return pushed


def await_findings(env: Mapping[str, str], pushed: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    """ECR's answer when the scan has ended, with progress on stderr. Raises CloudError when it does not end well."""
    at = pushed["ecr"]
    ecr = Ecr(env, account=at["account"], region=at["region"])
    image = f"{at['name']}@{pushed['digest']}"
    started = time.monotonic()
    pause, asked, said = 0.5, False, None
    while True:
        answer = ecr.scan(at["name"], pushed["digest"])
        status = answer.get("imageScanStatus", {})
        state = str(status.get("status", ""))
        if state in _DONE:
            return answer
        if state not in _WAITING:
            raise CloudError(
                f"ECR has not scanned {image}",
                why=f"{state}: {status.get('description', '')}",
                fix="for FAILED start a scan again; for UNSUPPORTED_IMAGE see which systems ECR's kind of scan knows",
            )
        if not state and not asked and not at["scans_on_push"]:
            ecr.start_scan(at["name"], pushed["digest"])
            asked = True
        waited = time.monotonic() - started
        if waited >= seconds:
            raise CloudError(
                f"the scan of {image} did not end within {seconds / 60:g} minutes",
                why=f"its status is {state}" if state else "ECR has none of this image: scan on push may be off",
                fix="SCAN_MINUTES gives it longer; `make scan` goes on waiting",
            )
        if state != said:
            print(f"waiting for the scan of {image}: {state or 'not begun'}", file=sys.stderr, flush=True)
            said = state
        time.sleep(min(pause, max(seconds - waited, 0)))
        pause = min(pause * 1.5, SLOWEST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
