"""How flags and the job file spell what a `Job` holds: `step=50`, `random:5`, `kill-rank,step=40`, `train=PATH`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from moorage.contract.s3 import SCHEME
from moorage.errors import ConfigError
from moorage.rehearsal.job import GRACE, Channel, Fault, FaultKind, InputMode, Interruption

_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)
_KINDS: tuple[str, ...] = get_args(FaultKind)
_MODES = {mode.lower(): mode for mode in get_args(InputMode)}


def duration(text: str) -> float:
    """Seconds of `30s`, `2m`, `1.5h`, `500ms`, or a bare number of seconds. Raises ConfigError."""
    return _measured(text, _SECONDS, "duration", "30s, 2m or 1.5h")


def rate(text: str) -> float:
    """Bytes per second of `500k`, `10MB/s`, `1Gi`; 0 is without limit. Raises ConfigError."""
    plain = re.sub(r"(?i)(?<=[0-9kmgi])b?(/s)?$", "", text.strip())
    return _measured(plain, _BYTES, "bandwidth", "500k or 10MB/s")


def share(text: str) -> float | str:
    """`0.5`, `50%` or `random`. Raises ConfigError."""
    text = text.strip()
    if text == "random":
        return text
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ConfigError(f"{text!r} is not a share", fix="give 0.5, 50% or random")
    return value


def interruption(text: str, *, hard: bool = False, host: str | None = None, grace: float = GRACE) -> Interruption:
    """`step=50`, `time=30s`, `every=20s`, `random:5`, `random:5/400` (of 400 steps); with `,hard`, `,host=algo-2` and
    `,grace=10s` behind it, which win over the arguments. Raises ConfigError.
    """
    first, options = _options(text, "interruption", {"hard", "host", "grace"})
    kind, value = _key_value(first)
    when: dict[str, Any] = {}
    if kind == "step":
        when["step"] = _count(value, text)
    elif kind in ("time", "every"):
        when[kind] = duration(value)
    elif kind == "random":
        number, _, among = value.partition("/")
        when["random"] = _count(number, text)
        when["among"] = _count(among, text) if among else None
    else:
        raise ConfigError(
            f"{text!r} is not an interruption", fix="give step=50, time=30s, every=20s or random:5, as --interrupt has"
        )
    if "hard" in options:
        hard = options["hard"] in ("", "true", "yes", "1")
    return Interruption(
        hard=hard,
        host=options.get("host", host),
        grace=duration(options["grace"]) if "grace" in options else grace,
        **when,
    )


def fault(text: str) -> Fault:
    """`kill-rank,step=40`, `freeze,time=10s,host=algo-2,for=5s`, `kill-rank,step=3,rank=1`. Raises ConfigError."""
    kind, options = _options(re.sub(r"^([a-z-]+)[:@]", r"\1,", text), "fault", {"step", "time", "host", "rank", "for"})
    if kind not in _KINDS:
        raise ConfigError(f"{text!r} is not a fault", fix=f"give one of {', '.join(_KINDS)} with a step or a time")
    if ("step" in options) == ("time" in options):
        raise ConfigError(f"when is the fault {text!r} to come?", fix=f"give a step or a time: {kind},step=40")
    return Fault(
        kind=kind,  # type: ignore[arg-type]  # one of _KINDS
        step=_count(options["step"], text) if "step" in options else None,
        time=duration(options["time"]) if "time" in options else None,
        host=options.get("host"),
        rank=_count(options.get("rank", "0"), text),
        duration=duration(options["for"]) if "for" in options else 0.0,
    )


def channel(text: str) -> tuple[str, Channel]:
    """`train=PATH`, with `,FastFile` or `,Pipe`, `,sharded` and `,type=text/csv` behind it: its name and the channel.
    A comma in PATH is part of it where none of these follows. Raises ConfigError.
    """
    name, location, given = _channel(text)
    return name, Channel(path=Path(location).expanduser(), **given)


def channel_table(text: str) -> tuple[str, dict[str, Any]]:
    """The same as a table of the job file, where it may also lie in S3: `train=s3://BUCKET/PREFIX,FastFile`."""
    name, location, given = _channel(text)
    if location.startswith(SCHEME):
        return name, {"s3": location, **given}
    return name, {"path": str(Path(location).expanduser()), **given}


def _channel(text: str) -> tuple[str, str, dict[str, Any]]:
    name, sign, rest = text.partition("=")
    if not sign or not rest:
        raise ConfigError(f"{text!r} is not a channel: NAME=PATH", fix="as train=data/train")
    given: dict[str, Any] = {}
    while "," in rest:
        rest_before, _, option = rest.rpartition(",")
        if option.lower() in _MODES:
            given["mode"] = _MODES[option.lower()]
        elif option.startswith("mode=") and option[5:].lower() in _MODES:
            given["mode"] = _MODES[option[5:].lower()]
        elif option == "sharded":
            given["sharded"] = True
        elif option.startswith("type="):
            given["content_type"] = option[5:]
        else:
            break
        rest = rest_before
    return name, rest, given


def group(text: str) -> tuple[str, str, int]:
    """`gpu=ml.g5.xlarge*2`: name, instance type and number of an instance group. Raises ConfigError."""
    found = re.fullmatch(r"([^=\s]+)=([a-z0-9.-]+)(?:\*([0-9]{1,4}))?", text.strip())
    if not found:
        raise ConfigError(f"{text!r} is not an instance group", fix="give NAME=TYPE*COUNT, as gpu=ml.g5.xlarge*2")
    return found[1], found[2], int(found[3] or 1)


def pairs(texts: list[str] | tuple[str, ...], what: str) -> dict[str, str]:
    """NAME=VALUE each. what: for the message, such as "hyperparameter". Raises ConfigError."""
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            # The text itself is not shown: it may hold a secret.
            raise ConfigError(f"a {what} has no value: it begins with {name[:20]!r}", fix="give NAME=VALUE")
        found[name] = value
    return found


def spelled(event: Interruption | Fault) -> str:
    """The flag's text for it."""
    parts: list[str] = [event.kind] if isinstance(event, Fault) else []
    if event.step is not None:
        parts.append(f"step={event.step}")
    if event.time is not None:
        parts.append(f"time={event.time:g}s")
    if isinstance(event, Interruption):
        if event.every is not None:
            parts.append(f"every={event.every:g}s")
        if event.random is not None:
            parts.append(f"random:{event.random}" + (f"/{event.among}" if event.among else ""))
        parts += ["hard"] if event.hard else []
        parts += [f"grace={event.grace:g}s"] if event.grace != GRACE else []
    else:
        parts += [f"rank={event.rank}"] if event.kind == "kill-rank" and event.rank else []
        parts += [f"for={event.duration:g}s"] if event.duration else []
    return ",".join([*parts, *([f"host={event.host}"] if event.host else [])])


def _measured(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    found = _NUMBER.fullmatch(text.strip())
    if not found or found[2].lower() not in units:
        raise ConfigError(f"{text!r} is not a {what}", fix=f"give it as {example}")
    return float(found[1]) * units[found[2].lower()]


def _options(text: str, what: str, known: set[str]) -> tuple[str, dict[str, str]]:
    first, *rest = (part.strip() for part in text.split(","))
    options = {}
    for part in rest:
        name, value = _key_value(part)
        if name not in known:
            raise ConfigError(
                f"{text!r}: an {what} has no option {name!r}", fix=f"its options are {', '.join(sorted(known))}"
            )
        options[name] = value
    return first, options


def _key_value(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"([a-z-]+)(?:[=:](.*))?", text.strip())
    return (found[1], found[2] or "") if found else (text, "")


def _count(text: str, whole: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise ConfigError(f"{whole!r}: {text!r} is not a whole number", fix="give one, as in step=50")
    return int(text)
