"""Every error a user can cause, one class per exit code.

A message says what happened, why, and what to do next; it names the setting and who sets it. Inner functions raise;
only the commands (`train`, `serve`, `moorage`) turn an error into an exit code and a failure file.
"""

from __future__ import annotations

import errno

STOPPED = 143
"""Exit code of a job stopped by SIGTERM with its state saved: 128 + SIGTERM, as the shell has it."""


class MoorageError(Exception):
    """Something the user can mend.

    what: what happened, naming the setting, file or host.
    why: the likely cause. fix: the next step.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        parts = [part.rstrip(".") for part in (what, why, fix) if part]
        super().__init__(" ".join(part if part.endswith("?") else f"{part}." for part in parts))


class ConfigError(MoorageError):
    """A configuration file, hyperparameter or setting cannot be used."""

    exit_code = 78


class ProgramError(MoorageError):
    """The training program cannot be found, read or started."""

    exit_code = 66


class RequirementsError(MoorageError):
    """The program's requirements.txt could not be installed."""

    exit_code = 65


class ClusterError(MoorageError):
    """A host is missing, lost, or not like the others."""

    exit_code = 69


class CheckpointError(MoorageError):
    """Checkpoints exist but none can be used, or one cannot be written."""

    exit_code = 74


class ExportError(MoorageError):
    """The trained model cannot be written."""

    exit_code = 73


class ModelError(MoorageError):
    """The trained model cannot be loaded or made ready to serve."""

    exit_code = 72


class CloudError(MoorageError):
    """AWS or a registry refuses, or is not reached."""

    exit_code = 77


class StopTimeout(MoorageError):
    """Ranks were still running when the grace after SIGTERM ended."""

    exit_code = 137


class HangError(MoorageError):
    """No rank made a step for much longer than one takes."""

    exit_code = 75


class EngineError(MoorageError):
    """The container engine, the image or this machine cannot do what a rehearsal needs."""

    exit_code = 71


def describe(error: OSError) -> str:
    """`ENOSPC (No space left on device)`."""
    name = errno.errorcode.get(error.errno, "") if error.errno else ""
    return f"{name} ({error.strerror})" if name else str(error)
