"""What is wrong with a request before it is sent: one finding each, with a code that stays."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """code: stable, for `--allow` and for machines. place: in the request, as ResourceConfig.InstanceCount, or a file.

    what: is the matter. why: it matters. fix: the next step. An error stops the command, a warning does not.
    """

    code: str
    what: str
    why: str = ""
    fix: str = ""
    place: str = ""
    severity: Severity = "error"

    def to_json(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("severity", "code", "place", "what", "why", "fix")}


def allowed(findings: Iterable[Finding], codes: Collection[str]) -> tuple[Finding, ...]:
    """Errors whose code was allowed are warnings; errors come first."""
    changed = [replace(one, severity="warning") if one.code in codes else one for one in findings]
    return tuple(sorted(changed, key=lambda one: one.severity != "error"))


def stops(findings: Iterable[Finding]) -> bool:
    return any(one.severity == "error" for one in findings)
