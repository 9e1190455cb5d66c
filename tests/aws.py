"""A server that speaks AWS's APIs, in the process of the test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def aws_server(address: str = "127.0.0.1") -> Iterator[str]:
    """Its endpoint, on a free port of `address`."""
    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
