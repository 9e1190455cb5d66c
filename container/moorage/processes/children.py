"""Child processes: started, signalled, killed with all they started, and reaped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from moorage.errors import ProgramError

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SHELLS = frozenset({"bash", "dash", "sh", "busybox", "zsh", "ksh"})
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Whatever our descendants leave behind comes to us, also where we are not PID 1 (Linux, prctl(2))."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """In a child: be killed when the thread that started it ends, so that nothing outlives its supervisor."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


@dataclass(frozen=True, kw_only=True)
class Started:
    """A process in a session of its own, and our ends of its pipes."""

    pid: int
    stdout: int
    stderr: int


def start_process(
    argv: tuple[str, ...], *, env: Mapping[str, str], cwd: Path, inherited: Collection[int] = ()
) -> Started:
    """Call it in the main thread: the process is tied to the thread that starts it. Raises ProgramError.

    inherited: descriptors that it has under the same numbers.
    """
    parent = os.getpid()
    try:
        process = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=tuple(inherited),
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509  (two system calls, bound before the fork)
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ProgramError(
            f"cannot start {argv[0]}",
            why=str(error),
            fix="the program must be a .py or .sh file, a module, or an executable with an interpreter that exists",
        ) from None
    assert process.stdout is not None and process.stderr is not None
    started = Started(pid=process.pid, stdout=os.dup(process.stdout.fileno()), stderr=os.dup(process.stderr.fileno()))
    process.stdout.close()
    process.stderr.close()
    # We reap it ourselves, with all other children: Popen must not look for it any more.
    process.returncode = 0
    return started


def terminate(pid: int) -> None:
    """SIGTERM to the main process only: DataLoader workers must go on while it saves.

    A shell without a trap would die of it at once, and with it the command it waits for, which is then the one to ask.
    """
    asked = _children(pid) if _is_shell_without_trap(pid) else []
    for process in asked or [pid]:
        _send(os.kill, process, signal.SIGTERM)


def _is_shell_without_trap(pid: int) -> bool:
    try:
        shell = Path(f"/proc/{pid}/exe").readlink().name in _SHELLS
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:  # it has ended
        return False
    caught = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")), 0)
    return shell and not caught & 1 << (signal.SIGTERM - 1)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:  # it has ended, or the kernel is without CONFIG_PROC_CHILDREN
        return []


def kill_group(pid: int) -> None:
    """SIGKILL to the process and all it started in its session. Before it is reaped: until then the pid is ours."""
    _send(os.killpg, pid, signal.SIGKILL)


def _send(send: Callable[[int, int], None], pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or only zombies left
        send(pid, number)


def reap(ours: Callable[[int], bool]) -> list[tuple[int, int]]:
    """Every child that has ended: (pid, status), status as Popen's returncode, -n for signal n.

    The group of a process of ours is killed before its pid is given back: a background grandchild must not go on.
    """
    ended: list[tuple[int, int]] = []
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return ended
        if found is None:
            return ended
        if ours(found.si_pid):
            kill_group(found.si_pid)
        _, status = os.waitpid(found.si_pid, 0)
        ended.append((found.si_pid, os.waitstatus_to_exitcode(status)))


def kill_children() -> None:
    """SIGKILL to all children: when those we started have ended, these are processes that left their sessions."""
    for pid in _children(os.getpid()):
        _send(os.kill, pid, signal.SIGKILL)
