"""Waiting until the names of the hosts resolve: on the platform DNS can lag the start of the containers by minutes."""

from __future__ import annotations

import logging
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from moorage.errors import ClusterError

logger = logging.getLogger("moorage")

Resolver = Callable[[str, None], Sequence[Any]]
"""Called as `socket.getaddrinfo(host, None)`; raises OSError while the name is not known."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
_POLL = 0.1


def wait_for_hosts(
    hosts: Sequence[str],
    deadline: float,
    resolve: Resolver = socket.getaddrinfo,
    *,
    stopped: Callable[[], bool] = lambda: False,
    progress_every: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Wait until every name resolves: True; or until `stopped()` says so: False.

    deadline: a time of `clock`, in seconds. It holds even while the resolver blocks, which glibc's does for tens of
    seconds when a name server is silent: every host is looked up in a daemon thread of its own.
    Raises ClusterError naming the hosts that are missing at the deadline, with what the resolver last said of each.
    """
    found: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
    over = threading.Event()
    # None: asked, and not answered yet.
    missing: dict[str, str | None] = dict.fromkeys(hosts)
    for host in missing:
        threading.Thread(target=_look_up, args=(host, resolve, found, over), name=f"dns-{host}", daemon=True).start()
    started = clock()
    say_at = started + progress_every
    try:
        while missing:
            if stopped():
                return False
            now = clock()
            if now >= deadline:
                raise _missing(missing, now - started)
            if now >= say_at:
                logger.info("waiting for the name of %s to resolve, %.0f s so far", _listed(missing), now - started)
                say_at = now + progress_every
            try:
                host, trouble = found.get(timeout=min(_POLL, deadline - now))
            except queue.Empty:
                continue
            if trouble is None:
                missing.pop(host, None)
            else:
                missing[host] = trouble
    finally:
        over.set()
    return True


def _look_up(
    host: str, resolve: Resolver, found: queue.SimpleQueue[tuple[str, str | None]], over: threading.Event
) -> None:
    pause = FIRST_PAUSE
    while not over.is_set():
        try:
            resolve(host, None)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that is empty or longer than 63 characters
            found.put((host, str(error)))
        else:
            found.put((host, None))
            return
        # Jitter, so that a hundred hosts started together do not ask the name server together.
        over.wait(random.uniform(0.5, 1.0) * pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _listed(missing: dict[str, str | None]) -> str:
    names = sorted(missing)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _missing(missing: dict[str, str | None], waited: float) -> ClusterError:
    said = {trouble or "the name server did not answer" for trouble in missing.values()}
    return ClusterError(
        f"no address for {_listed(missing)} after {waited:.0f} s",
        why="; ".join(sorted(said)),
        fix="look at that host's own log, where it may have ended before it joined; "
        "the time to wait is the setting join_timeout (MOORAGE_JOIN_TIMEOUT)",
    )
