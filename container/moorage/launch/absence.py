"""Failures of hosts: one that never came, was lost, has other code, or does not end."""

from __future__ import annotations

import time
from collections.abc import Sequence

from moorage.contract.failure import Failure
from moorage.errors import ClusterError


def never_came(absent: Sequence[str], hosts: Sequence[str], join_timeout: float) -> Failure:
    """join_timeout: seconds."""
    missing = ", ".join(absent)
    error = ClusterError(
        f"{missing} did not join within {join_timeout:.0f} s",
        why=f"{len(absent)} of {len(hosts)} hosts never reached {hosts[0]}",
        fix=f"look at the logs of {missing}, where current_host in resourceconfig.json must be that name; "
        "the time to wait is the setting join_timeout, the port control_port",
    )
    return Failure.from_error(error, hosts[0], time=time.time())


def not_down(stuck: Sequence[str], first: str) -> Failure:
    error = ClusterError(
        f"ranks of {', '.join(stuck)} did not end", why="they were sent SIGKILL, and are stuck in the kernel"
    )
    return Failure.from_error(error, first, time=time.time())


def lost_host(host: str, why: str) -> Failure:
    error = ClusterError(
        f"lost the host {host}: {why}",
        why="its container ended, or the network to it is cut",
        fix=f"look at the log of {host}; training goes on from the last checkpoint when the job is started again",
    )
    return Failure.from_error(error, host, time=time.time())


def different_code(first: str, ours: str, other: str, theirs: str) -> Failure:
    """ours, theirs: fingerprints."""
    error = ClusterError(
        f"{first} and {other} have different code",
        why=f"the fingerprints are {ours} on {first} and {theirs} on {other}",
        fix="give every host the same program, arguments and version of moorage",
    )
    return Failure.from_error(error, other, time=time.time())
