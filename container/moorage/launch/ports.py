"""A port for the ranks of one attempt to meet at."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from moorage.errors import ClusterError

LOWEST = 10_000
_TRIES = 200


def free_port(taken: int = 0) -> int:
    """Free on all interfaces now, other than `taken`, and not one that the kernel may give to the next connection that
    somebody opens, so that it is still free when rank 0 listens on it. Raises ClusterError when none is found.
    """
    ephemeral = _first_ephemeral()
    for _ in range(_TRIES):
        port = random.randrange(LOWEST, max(ephemeral, LOWEST + 10_000))
        if port != taken and _is_free(port):
            return port
    raise ClusterError(f"there is no free port between {LOWEST} and {ephemeral} for the ranks to meet at")


def _first_ephemeral() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768  # the kernel's default


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
