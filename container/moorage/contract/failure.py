"""Why a job failed: one record that the hosts agree on, and the failure file that the platform shows.

SageMaker makes the first 1024 characters of /opt/ml/output/failure the FailureReason of the job.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import signal as signals
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from moorage.contract.secrets import known_secrets, redact
from moorage.contract.values import decode
from moorage.errors import MoorageError, describe

LIMIT = 1024
"""Of the failure file, in bytes; never more characters than that either."""

_MESSAGE_LIMIT = 480

logger = logging.getLogger("moorage")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong first.

    rank: global; None when it was the host itself. code: the exit code it gives the job. signal: what ended the rank,
    or 0. frames: the last frames of its exception, the innermost last. time: seconds since 1970.
    consequence: it looks like the effect of another rank's end, such as a connection closed by a peer.
    step: optimizer steps the rank had done, None where nobody knows.
    note: why there is no other attempt, where that is not plain.
    hung: nothing ended; the job made no step any more, and the rank, if one is named, is where to look.
    """

    host: str
    code: int
    message: str
    rank: int | None = None
    signal: int = 0
    frames: tuple[str, ...] = ()
    hint: str = ""
    time: float = 0.0
    consequence: bool = False
    step: int | None = None
    note: str = ""
    hung: bool = False

    @classmethod
    def from_error(cls, error: MoorageError, host: str, *, time: float = 0.0) -> Failure:
        return cls(host=host, code=error.exit_code, message=str(error), time=time)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Failure:
        """Raises TypeError or ValueError for what `to_json` did not write."""
        known = {field.name for field in dataclasses.fields(cls)}
        given = {key: item for key, item in value.items() if key in known}
        given["frames"] = tuple(str(frame) for frame in given.get("frames") or ())
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def redacted(self, known: Iterable[str]) -> Failure:
        """The same without secrets: before it is logged, written or sent."""
        known = tuple(known)
        return dataclasses.replace(
            self,
            message=redact(self.message, known),
            frames=tuple(redact(frame, known) for frame in self.frames),
            hint=redact(self.hint, known),
        )

    @property
    def who(self) -> str:
        return self.host if self.rank is None else f"rank {self.rank} on {self.host}"

    @property
    def how(self) -> str:
        if self.hung:
            return "hangs"
        if self.rank is None:
            return ""
        return f"was killed by {signal_name(self.signal)}" if self.signal else f"failed with exit code {self.code}"

    @property
    def headline(self) -> str:
        """Who failed, how, and of what; one line where the message is one."""
        what = f"{self.who} {self.how}".rstrip()
        return ": ".join(part for part in (what, self.message) if part)

    def text(self, limit: int = LIMIT) -> str:
        """For the failure file: at most `limit` bytes of UTF-8. Frames give way first, the outermost before others."""
        note = f"\n{self.note}" if self.note else ""
        head = shortened(self.headline, _MESSAGE_LIMIT if self.frames or self.hint else limit - size(note)) + note
        hint = f"\nHint: {self.hint}" if self.hint else ""
        room = limit - size(head) - size(hint) - size("\nLast frames:")
        kept: list[str] = []
        for frame in reversed(self.frames):
            line = "\n  " + frame
            if size(line) > room:
                break
            kept.insert(0, line)
            room -= size(line)
        frames = "\nLast frames:" + "".join(kept) if kept else ""
        return shortened(head + hint + frames, limit)


def size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def shortened(text: str, limit: int) -> str:
    """`text` within `limit` bytes of UTF-8, without a torn character."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    return data[: limit - 3].decode("utf-8", "ignore") + "..."


def signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def job_secrets(env: Mapping[str, str], hyperparameters: Mapping[str, str]) -> tuple[str, ...]:
    """Every form in which a secret of this job can turn up: as given, decoded, quoted by repr, JSON or a URL."""
    found: set[str] = set()
    for value in known_secrets(env, hyperparameters):
        decoded = decode(value)
        for form in {value, decoded} if isinstance(decoded, str) else {value}:
            if len(form) >= 6:
                found |= {form, repr(form)[1:-1], json.dumps(form)[1:-1], quote(form, safe="")}
    return tuple(sorted(found, key=len, reverse=True))


def remove_stale(path: Path) -> None:
    """A failure file left by an earlier run or attempt is not this one's."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("cannot remove the old failure file %s: %s", path, error.strerror)
    else:
        logger.info("removed an earlier failure file: %s", path)


def write_failure(path: Path, failure: Failure, known: Iterable[str] = ()) -> bool:
    """Write the failure file, unless the program wrote its own. Cannot fail: it logs why there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Exclusively: a program that writes its own at this very moment wins as well.
        with path.open("x", encoding="utf-8") as file:
            _fill(path, file, failure.redacted(known).text())
    except OSError as error:
        if isinstance(error, FileExistsError) and path.is_file():
            logger.info("the program wrote a failure file of its own, which is kept: %s", path)
        else:
            logger.warning("cannot write the failure file %s: %s", path, describe(error))
        return False
    return True


def _fill(path: Path, file: IO[str], text: str) -> None:
    """Raises OSError, and then there is no file: an empty one would be shown as the reason."""
    try:
        file.write(text)
        file.flush()
    except OSError:
        path.unlink()
        raise


_SIGNAL_HINTS = {
    signals.SIGKILL: "somebody killed it; most often the kernel, because the host ran out of memory: "
    "use a smaller batch or fewer DataLoader workers, or an instance with more memory.",
    signals.SIGBUS: "most often /dev/shm is full: use fewer DataLoader workers, "
    "or start the container with a larger --shm-size.",
    signals.SIGSEGV: "a crash in native code: the frames, if any, are those of the interpreter then.",
    signals.SIGABRT: "native code gave up: its reason is in the rank's last lines of the log.",
}

_TEXT_HINTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), hint)
    for pattern, hint in (
        (
            r"CUDA out of memory|OutOfMemoryError",
            "the device is out of memory: use a smaller batch with moorage_accumulation, moorage_precision bf16, "
            "moorage_activation_checkpointing, or moorage_strategy fsdp.",
        ),
        (
            r"unable to (?:open|allocate) shared memory|bus error|shm_open|torch_\d+_\d+_\d+",
            "/dev/shm is full: use fewer DataLoader workers, or start the container with a larger --shm-size.",
        ),
        (r"No space left on device|ENOSPC", "a disk is full: ask for a larger volume, or keep fewer checkpoints."),
        (r"Disk quota exceeded", "the quota of this folder is used up."),
        (
            r"EADDRINUSE|address already in use",
            "another process has the port: look for a server that the program leaves running.",
        ),
        (
            r"No module named",
            "list the package in the program's requirements.txt, or put the module beside the program.",
        ),
        (r"invalid device ordinal", "there are more ranks on the host than devices: look at moorage_ranks_per_host."),
        (
            r"no kernel image is available|CUDA driver version is insufficient|forward compatibility was attempted",
            "the image's CUDA does not fit this instance's device or driver.",
        ),
        (
            r"watchdog caught collective operation timeout|timed? ?out after|timeout waiting|Timed out waiting",
            "the ranks did not reach the same collective in time: one is stuck, much slower, or takes another branch.",
        ),
        (
            r"terminate called without an active exception",
            "Python ended while torch's communication threads were at work: let go of the model "
            "(del model, then gc.collect(); with accelerate: accelerator.free_memory(model)), "
            "then call torch.distributed.destroy_process_group(), as the program's last lines.",
        ),
        (
            r"NCCL error|ncclSystemError|ncclRemoteError|ncclInternalError",
            "communication between devices failed: if no other rank failed before, run with NCCL_DEBUG=INFO "
            "and check that the security group lets the hosts reach one another on every port.",
        ),
        (
            r"connectFullMesh failed|gloo/transport|Connection (?:closed|reset) by peer",
            "communication between ranks failed: if no other rank failed before, check the network between the hosts "
            "and GLOO_SOCKET_IFNAME.",
        ),
        (
            r"SyntaxError|IndentationError|TabError",
            "the program does not compile under this Python: correct that line.",
        ),
        (
            r"Permission denied|Read-only file system",
            "write to the model, output or checkpoint folder, which the container's user must own: "
            "inputs are read-only, and so is the image under --read-only.",
        ),
    )
)


def hint_for(text: str, signal: int = 0) -> str:
    """The likely cause and the next step, or "" when this table knows nothing."""
    for pattern, hint in _TEXT_HINTS:
        if pattern.search(text):
            return hint
    try:
        return _SIGNAL_HINTS.get(signals.Signals(signal), "")
    except ValueError:
        return ""
