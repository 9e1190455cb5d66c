"""The settings of `serve`: MOORAGE_* in the environment, or the official names beside some, over which ours win."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moorage.contract.setting import Given, checked, in_environment, not_negative, positive, setting
from moorage.contract.settings import Settings
from moorage.errors import ConfigError

PORT = 8080
"""Where the platform asks, unless SAGEMAKER_BIND_TO_PORT says otherwise."""


def _type(text: str) -> bool:
    return bool(re.fullmatch(r"[\w.+-]+/[\w.+-]+(;.*)?", text, re.ASCII))


def _dimensions(text: str) -> dict[str, str] | None:
    """None where `text` is none: at most 9, of 1 to 255 characters, says CloudWatch."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    found = {name.strip(): value.strip() for name, _, value in pairs}
    good = len(found) <= 9 and all(0 < len(part) < 256 for pair in found.items() for part in pair)
    return found if good and "_aws" not in found else None


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What the user can choose. The values are typed by their defaults."""

    # the model
    handler: str = setting(
        "",
        "The file, or module, with model_fn and the other handlers, as seen from the model's folder code; else "
        "inference.py, where it is there.",
        official="SAGEMAKER_PROGRAM",
    )
    workers: int = setting(
        0,
        "Model processes; 0 is one per device, or one where there is only a CPU.",
        check=not_negative,
        official="SAGEMAKER_MODEL_SERVER_WORKERS",
    )
    device: str = setting(
        "auto",
        "Where the model lies: cpu, cuda (each worker has its own), cuda:1; auto is cuda where there is one.",
        check=lambda text: bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", text, re.ASCII)),
    )
    precision: str = setting("fp32", "Arithmetic of the model.", choices=("fp32", "bf16", "fp16"))
    compile: bool = setting(False, "Compile the model with torch.compile.")
    num_threads: int = setting(0, "Threads of each model process; 0 shares the CPUs between them.", check=not_negative)
    unsafe_pickle: bool = setting(
        False, "Load pickles that may run any code; for models that only you could have written."
    )
    default_content_type: str = setting(
        "application/json", "Of a request that does not say what its body is.", check=_type
    )
    default_accept: str = setting(
        "application/json",
        "Of a request that does not say what its answer is to be.",
        check=_type,
        official="SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
    )
    # batches and the queue
    max_batch_size: int = setting(1, "Requests that the model is given at once; 1 is no batching.", check=positive)
    max_queue_delay_us: int = setting(
        0, "Microseconds that a request may wait for others to fill its batch.", check=not_negative
    )
    max_queue: int = setting(
        128, "Requests that wait for a model process; one more is answered 503 at once.", check=positive
    )
    # deadlines, in seconds
    request_timeout: float = setting(
        60.0,
        "Seconds from a request to its answer, or to 504; the platform waits 60.",
        check=positive,
        official="SAGEMAKER_MODEL_SERVER_TIMEOUT",
    )
    stuck_timeout: float = setting(
        0.0,
        "Seconds with one batch after which a model process is stuck, and is replaced; 0 is request_timeout + 10.",
        check=not_negative,
    )
    load_timeout: float = setting(600.0, "Seconds for a model process to load and warm up.", check=positive)
    header_timeout: float = setting(10.0, "Seconds for a client to send a request's head.", check=positive)
    body_timeout: float = setting(60.0, "Seconds for a client to send a request's body.", check=positive)
    drain: float = setting(
        25.0, "Seconds from SIGTERM for accepted requests to be answered; the platform kills at 30.", check=not_negative
    )
    # the front
    max_body_mb: float = setting(
        100.0,
        "Largest body, in MB; a larger one is answered 413. The platform sends 6 at most, 100 in batch.",
        check=positive,
        official="SAGEMAKER_MAX_PAYLOAD_IN_MB",
    )
    max_connections: int = setting(4096, "Open connections; one more is closed at once.", check=positive)
    access_log: bool = setting(True, "One line of JSON in the log for each request.")
    metrics_port: int = setting(
        9090, "Port on 127.0.0.1 where Prometheus may ask /metrics; 0 is none.", check=lambda port: 0 <= port < 65536
    )
    emf: bool = setting(False, "Metrics in the log once a minute, in CloudWatch's embedded metric format.")
    emf_dimensions: str = setting(
        "",
        "What CloudWatch is to know these metrics apart by, NAME=VALUE,...: Endpoint=digits.",
        check=lambda text: _dimensions(text) is not None,
    )

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 2**20)

    @property
    def dimensions(self) -> dict[str, str]:
        """Of emf_dimensions, by name."""
        return _dimensions(self.emf_dimensions) or {}

    @property
    def stuck_seconds(self) -> float:
        return self.stuck_timeout or self.request_timeout + 10

    @classmethod
    def read(cls, env: Mapping[str, str]) -> ServeSettings:
        """The official names, then MOORAGE_*; an empty variable says nothing.

        Raises ConfigError for a misspelt name, a value of the wrong type, or one outside its choices or bounds.
        """
        trainings = {field.name for field in dataclasses.fields(Settings)}
        beside = trainings - {field.name for field in dataclasses.fields(cls)}
        given = [*_official(cls, env), *in_environment(env, beside=beside)]
        return cls(**checked(cls, given, beside=trainings))


def _official(kind: type[Any], env: Mapping[str, str]) -> Iterator[Given]:
    for field in dataclasses.fields(kind):
        name = field.metadata["official"]
        text = env.get(name, "").strip()
        if not text or (name == "SAGEMAKER_MAX_PAYLOAD_IN_MB" and text == "0"):
            continue  # 0 says that batch transform has no limit; a server has one
        yield Given(name=field.name, value=text, source=f"environment variable {name}")


def port(env: Mapping[str, str]) -> int:
    """Where `serve` listens. Raises ConfigError."""
    text = env.get("SAGEMAKER_BIND_TO_PORT", "").strip()
    if not text:
        return PORT
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise ConfigError(
            f"environment variable SAGEMAKER_BIND_TO_PORT: {text!r} is not a port",
            why="the platform sets it; elsewhere it is 8080",
            fix="set it to a number from 1 to 65535, or leave it out",
        )
    return int(text)
