"""LitServe as its documentation starts it, with one process for the model."""

from __future__ import annotations

import sys
from typing import Any

import litserve


class Echo(litserve.LitAPI):  # type: ignore[misc]  # an optional package
    def setup(self, device: str) -> None:
        pass

    def predict(self, x: Any) -> Any:
        return x


if __name__ == "__main__":
    server = litserve.LitServer(Echo(api_path="/echo"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
