"""What a handler may ask of a request, and say of its answer: the part of TorchServe's and AWS's context that is used.

One request at a time, so an index (`idx`) is always 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import moorage
from moorage.serving.exchange import Request

CONTENT_TYPE = "content-type"
CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"


class Context:
    """request: None while the model is loaded."""

    def __init__(self, model_dir: str, device: torch.device, request: Request | None = None) -> None:
        self.model_name = "model"
        self.device, self.request = device, request
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": device.index if device.type == "cuda" else None,
            "batch_size": 1,
            "server_name": "moorage",
            "server_version": moorage.__version__,
        }
        self.request_processor = [self]
        self.status = 200
        self.headers: dict[str, str] = {}

    # Of the request

    @property
    def request_id(self) -> str:
        return self.request.id if self.request else ""

    @property
    def request_ids(self) -> dict[int, str]:
        return {0: self.request_id}

    @property
    def custom_attributes(self) -> str:
        """X-Amzn-SageMaker-Custom-Attributes."""
        return self.request.custom_attributes if self.request else ""

    def get_request_id(self, idx: int = 0) -> str:
        return self.request_id

    def get_all_request_header(self, idx: int = 0) -> Mapping[str, str]:
        return self.request.headers if self.request else {}

    def get_request_header(self, idx: int, key: str) -> str | None:
        """By its name, however that is written."""
        return self.get_all_request_header().get(key.lower())

    def get_request_properties(self) -> Mapping[str, str]:
        return self.get_all_request_header()

    def get_request_property(self, key: str) -> str | None:
        return self.get_request_header(0, key)

    # Of the answer

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.status = int(code)

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, CONTENT_TYPE, value)

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.headers[key.lower()] = str(value)

    def report_status(self, code: int, reason_phrase: str = "") -> None:
        self.set_response_status(code)

    def add_response_property(self, key: str, value: str) -> None:
        self.set_response_header(0, key, value)
