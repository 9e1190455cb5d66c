"""What the platform takes from the hosts at the end: one archive of all model folders, one of all outputs, the reason.

Files of one name from several hosts overwrite each other, in the order of the hosts.
"""

from __future__ import annotations

import filecmp
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LIMIT = 1024
"""Characters of the failure file that become the FailureReason."""


def merge(folders: Mapping[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """name in the archive -> file, of all hosts, and the names that two hosts wrote differently."""
    found: dict[str, Path] = {}
    differ = []
    for folder in folders.values():
        for parent, below, names in os.walk(folder):
            for name in [*names, *(entry for entry in below if Path(parent, entry).is_symlink())]:
                path = Path(parent, name)
                key = path.relative_to(folder).as_posix()
                if key in found and not _same(found[key], path):
                    differ.append(key)
                found[key] = path
    return dict(sorted(found.items())), sorted(set(differ))


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def archive(files: Mapping[str, Path], target: Path) -> Path | None:
    """A tar.gz; None where there is no file."""
    if not files:
        return None
    part = target.with_name(f".{target.name}")
    # Fast rather than small: it is not sent anywhere.
    with tarfile.open(part, "w:gz", compresslevel=1) as tar:
        for name, path in files.items():
            tar.add(path, arcname=name, recursive=False)
    part.rename(target)
    return target


def failure_reason(ended: Sequence[tuple[str, int]], failures: Mapping[str, Path]) -> str:
    """As DescribeTrainingJob words it. ended: host and exit code, in the order in which they ended. failures: the
    failure file of each host, there or not."""
    failed = [(host, code) for host, code in ended if code != 0]
    if not failed:
        return ""
    for host, code in failed:
        if text := read_failure(failures[host]):
            return f"AlgorithmError: {text}, exit code: {code}"
    return f"AlgorithmError: , exit code: {failed[0][1]}"


def read_failure(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:LIMIT].strip()
    except FileNotFoundError:
        return ""
