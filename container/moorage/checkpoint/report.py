"""The report of `moorage inspect`, as JSON for scripts and as lines for a person. No torch here."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from moorage.checkpoint.inspect import Found, Report, State
from moorage.checkpoint.layout import step_name

HEADS = ("step", "epoch", "state", "size", "files", "ranks", "attempt", "saved", "metrics")


def as_json(report: Report, host: str = "") -> dict[str, Any]:
    """What json.dumps takes without NaN."""
    now = time.time()
    return {
        "folder": report.folder,
        "verified": report.verified,
        "exit_code": report.exit_code(host),
        "checkpoints": [_found_as_json(found, now) for found in report.checkpoints],
        "moved_aside": list(report.aside),
    }


def _found_as_json(found: Found, now: float) -> dict[str, Any]:
    manifest = found.manifest
    facts: dict[str, Any] = {
        "step": found.step, "name": step_name(found.step), "state": str(found.state), "best": found.best,
        "bytes": found.size, "files": found.files, "whole_hosts": list(found.hosts), "problems": dict(found.problems),
        "uploaded_files": found.uploaded,
    }  # fmt: skip
    if manifest is not None:
        facts |= {
            "epoch": manifest.epoch, "samples": manifest.samples, "world_size": manifest.world_size,
            "strategy": manifest.strategy, "hosts": sorted(set(manifest.hosts)), "attempt": manifest.attempt,
            "metrics": {name: _finite(value) for name, value in manifest.metrics.items()},
            "created": _finite(manifest.created), "age_seconds": _finite(now - manifest.created),
            "versions": dict(manifest.versions), "total_bytes": manifest.size,
        }  # fmt: skip
    return facts


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def as_text(report: Report, host: str = "") -> Iterator[str]:
    """Lines for a person."""
    now = time.time()
    rows = [HEADS, *(_row(found, now) for found in report.checkpoints)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    for number, row in enumerate(rows if report.checkpoints else []):
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        yield from _reasons(report.checkpoints[number - 1], host) if number else ()
    for name in report.aside:
        yield f"{name}: moved aside as damaged; removed once training has passed its step"
    yield _verdict(report, host)


def _row(found: Found, now: float) -> tuple[str, ...]:
    manifest = found.manifest
    state = f"{found.state}, best" if found.best else str(found.state)
    if manifest is None:
        return (str(found.step), "", state, size_text(found.size), str(found.files), "", "", "", "")
    metrics = " ".join(f"{name}={value:g}" for name, value in sorted(manifest.metrics.items()))
    return (
        str(found.step), str(manifest.epoch), state, size_text(found.size), str(found.files),
        f"{manifest.world_size} {manifest.strategy}".strip(), str(manifest.attempt), age_text(now - manifest.created),
        metrics,
    )  # fmt: skip


def _reasons(found: Found, host: str, most: int = 5) -> Iterator[str]:
    if found.state is State.PART and found.manifest is not None:
        others = sorted({entry.host for entry in found.manifest.files.values()} - set(found.hosts))
        yield f"    this host's part is whole ({', '.join(found.hosts)}); not here: the files of {', '.join(others)}"
        if host and host not in found.hosts:
            yield f"    {host} is not among the hosts whose part is here"
    else:
        for name, reason in list(found.problems.items())[:most]:
            written = found.manifest.files[name].host if found.manifest and name in found.manifest.files else ""
            yield f"    {name}{f' of {written}' if written else ''}: {reason}"
        if len(found.problems) > most:
            yield f"    and {len(found.problems) - most} more files"
    if found.uploaded is not None and found.uploaded < found.files:
        yield f"    uploaded: {found.uploaded} of {found.files} files"


def _verdict(report: Report, host: str) -> str:
    how = "hashes verified" if report.verified else "sizes only"
    usable = [found for found in report.checkpoints if found.counts_for(host)]
    if usable:
        whole = f"{len(usable)} of {len(report.checkpoints)} whole ({how})"
        return f"{whole}; a job goes on from step {usable[0].step}"
    if any(found.state is State.PART for found in report.checkpoints):
        return f"none is whole in this folder alone ({how}); --host NAME tells whose own folder it is"
    return f"no checkpoint in {report.folder} can be used ({how})" if report.checkpoints else "no checkpoints"


def size_text(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def age_text(seconds: float) -> str:
    """`12 min ago`; a clock that was ahead gives 0 s."""
    if not math.isfinite(seconds):
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"
