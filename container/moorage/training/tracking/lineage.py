"""What a run was made of, as tags of its record: code, data, image, and the checkpoint it goes on from."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import xxhash

import moorage
from moorage.contract.config import Channel, JobConfig
from moorage.contract.fingerprint import fingerprint
from moorage.contract.secrets import redacted

GIVEN = "MOORAGE_LINEAGE"
"""Variable in which whoever submits the job says what a container cannot find out: image digest, data URIs, code URI.
A JSON object of texts; each becomes the tag moorage.<name>."""

_MOST_FILES = 100_000
"""Files of a channel after which the rest is not counted."""


def tags(config: JobConfig, env: Mapping[str, str], *, world_size: int) -> dict[str, str]:
    """Reads names and sizes of the data, and the code; so it may take some seconds."""
    found = {
        "job": config.name,
        "arn": config.arn,
        "hosts": str(len(config.hosts)),
        "instance_type": config.instance_type,
        "world_size": str(world_size),
        "version": moorage.__version__,
        "torch": version("torch"),
        "code": _code(),
        **{f"data.{channel.name}": _data(channel) for channel in config.channels if channel.input_mode != "Pipe"},
        **_given(env),
    }
    return {f"moorage.{name}": redacted(name, text) for name, text in found.items() if text}


def resumed(step: int) -> dict[str, str]:
    """The checkpoint that this attempt goes on from; each attempt adds its own."""
    return {f"moorage.resumed.step-{step:08d}": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def _given(env: Mapping[str, str]) -> dict[str, str]:
    try:
        given = json.loads(env.get(GIVEN) or "{}")
    except (ValueError, RecursionError):
        return {}
    return {str(name): str(value) for name, value in given.items()} if isinstance(given, dict) else {}


def _code() -> str:
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    return f"{Path(program).name} xxh3:{fingerprint(Path(program).resolve().parent, ())}" if program else ""


def _data(channel: Channel) -> str:
    """`1797 files, 12345 bytes, xxh3:...` over names and sizes: terabytes are not read for a tag."""
    digest, number, total = xxhash.xxh3_128(), 0, 0
    for folder, folders, names in os.walk(channel.folder):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            try:
                size = path.stat().st_size
            except OSError:  # gone, or a link to nowhere
                continue
            digest.update(f"{path.relative_to(channel.folder)}\0{size}\n".encode(errors="surrogateescape"))
            number, total = number + 1, total + size
        if number >= _MOST_FILES:
            return f"more than {number} files"
    return f"{number} files, {total} bytes, xxh3:{digest.hexdigest()}"
