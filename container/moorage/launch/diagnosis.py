"""From how a rank ended, and what it left behind, to what went wrong."""

from __future__ import annotations

import json
import re
import signal as signals
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.contract.failure import Failure, hint_for

_FRAMES = 6

_EFFECT = re.compile(
    r"connection (?:was )?(?:likely )?(?:closed|reset)|broken pipe|connectFullMesh failed"
    r"|DistNetworkError|DistStoreError|DistBackendError|NCCL error"
    r"|nccl(?:System|Remote|Internal)Error|watchdog|heartbeat monitor timed out"
    r"|timed? ?out (?:after|waiting)|recvValue failed|failed to recv|third_party/gloo|gloo/transport",
    re.IGNORECASE,
)
"""What a rank says when another one went away. Such a failure is believed only where no other explains it."""

_ORIGINAL = "Original Traceback (most recent call last):"
_RANK_MARK = re.compile(r"^\[rank\d+\]:[ ]?")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)(?:,? in (?P<name>.+))?$')
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?::\s|$)")
_FATAL = re.compile(r"^Fatal Python error: (?P<what>.+)$")
_NATIVE = re.compile(r"^(?:terminate called|\s*what\(\):)")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a rank ended. status: as Popen's returncode. stderr: its last lines."""

    rank: int
    status: int
    error_file: Path
    stderr: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Said:
    """An exception as the rank told it: `Type: message`, and frames, the innermost last."""

    message: str
    frames: tuple[str, ...] = ()
    time: float = 0.0


def diagnose(ending: Ending, host: str) -> Failure:
    """Its own account first: the error file (torch's @record, or Run), else the last traceback on stderr."""
    lines = [_RANK_MARK.sub("", line) for line in ending.stderr]
    said = _from_error_file(ending.error_file) or _from_traceback(lines) or _from_last_lines(lines)
    signal = max(0, -ending.status)
    context = "\n".join((said.message, *said.frames))
    # A rank that its process group aborted says why on stderr only.
    around = context if not signal else "\n".join((context, *lines[-40:]))
    return Failure(
        host=host,
        rank=ending.rank,
        code=128 + signal if signal else ending.status,
        signal=signal,
        message=said.message,
        frames=said.frames,
        hint=hint_for(around, signal),
        time=said.time or time.time(),
        # By abort() the communication libraries end a rank. SIGTERM may be the stop that we are about to hear of.
        consequence=signal == signals.SIGTERM or (signal in (0, signals.SIGABRT) and bool(_EFFECT.search(around))),
    )


def _from_error_file(path: Path) -> _Said | None:
    """torchrun's format: {"message": {"message": ..., "extraInfo": {"py_callstack": ..., "timestamp": ...}}}."""
    try:
        content = json.loads(path.read_bytes())
        written = path.stat().st_mtime
    except (OSError, ValueError):
        return None
    message = content.get("message") if isinstance(content, dict) else None
    if isinstance(message, str):  # what torch's native handlers write
        return _Said(message=message.strip(), time=written)
    if not isinstance(message, dict):
        return None
    stack = _text(message.get("extraInfo"), "py_callstack").splitlines()
    return _Said(message=_inner(_text(message, "message").strip()), frames=_frames(stack), time=written)


def _inner(message: str) -> str:
    """Of a DataLoader worker's exception, which its rank raises again with the traceback as text (torch
    ExceptionWrapper): who raised it, and the exception itself.
    """
    outer, mark, traceback = message.partition(_ORIGINAL)
    said = _from_traceback([_ORIGINAL, *traceback.splitlines()]) if mark else None
    return f"{outer.strip().rstrip('.')}: {said.message}" if said else message


def _text(value: Any, key: str) -> str:
    return str(value.get(key) or "") if isinstance(value, dict) else ""


def _from_traceback(lines: Sequence[str]) -> _Said | None:
    """The last exception that Python printed."""
    frames_end = next((i for i in range(len(lines) - 1, -1, -1) if _FRAME.match(lines[i])), None)
    if frames_end is None:
        return None
    begin = frames_end
    while begin > 0 and (lines[begin].startswith((" ", "\t")) or _FRAME.match(lines[begin])):
        begin -= 1
    fatal = next((m["what"] for line in reversed(lines[:frames_end]) if (m := _FATAL.match(line))), None)
    if fatal is not None:
        # faulthandler prints the innermost frame first.
        block = [line for line in lines[begin + 1 :] if _FRAME.match(line)]
        return _Said(message=fatal, frames=_frames(block[:_FRAMES][::-1]))
    after = frames_end + 1
    while after < len(lines) and (lines[after].startswith((" ", "\t")) or not lines[after].strip()):
        after += 1
    if after == len(lines) or not _EXCEPTION.match(lines[after]):
        return None
    message = [lines[after]]
    for line in lines[after + 1 : after + 4]:
        if not line.strip() or line.startswith("Traceback ") or _NATIVE.match(line):
            break
        message.append(line)
    return _Said(message="\n".join(message).strip(), frames=_frames(lines[begin:after]))


def _frames(stack: Sequence[str]) -> tuple[str, ...]:
    """The last ones, as `train.py:12 in main: total = x / 0`."""
    frames = []
    for index, line in enumerate(stack):
        if not (match := _FRAME.match(line)):
            continue
        code = stack[index + 1].strip() if index + 1 < len(stack) and not _FRAME.match(stack[index + 1]) else ""
        place = f"{short(match['file'])}:{match['line']}" + (f" in {match['name']}" if match["name"] else "")
        frames.append(f"{place}: {code}" if code and set(code) - set("^~ ") else place)
    return tuple(frames[-_FRAMES:])


def short(file: str) -> str:
    """The last three parts of a path: enough to find it, and room for more frames."""
    return "/".join(Path(file).parts[-3:])


def _from_last_lines(lines: Sequence[str]) -> _Said:
    """No exception anywhere: the C++ runtime's last words, else the last lines it said, if any."""
    native = [line.strip() for line in lines[-40:] if _NATIVE.match(line)]
    if native:
        return _Said(message=" / ".join(native))
    last = [line.strip() for line in lines[-40:] if line.strip()][-3:]
    return _Said(message=" / ".join(last))
