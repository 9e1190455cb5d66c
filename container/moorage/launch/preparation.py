"""Preparing the job in a process of its own: it may download and install for minutes, and a stop must end it at once.

A forked process, so that what it imports costs PID 1 neither time nor memory, and that it can be killed whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from moorage.contract.config import JobConfig
from moorage.contract.failure import Failure
from moorage.contract.program import Program
from moorage.errors import MoorageError
from moorage.launch.diagnosis import Ending, diagnose
from moorage.launch.loop import Loop
from moorage.processes.children import die_with_parent, kill_group
from moorage.processes.logs import STDERR, STDOUT, LineFormatter, LogPump, Stream

NO_ERROR_FILE = Path("/nonexistent")

logger = logging.getLogger("moorage")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """job_env: SM_* and the like, for every rank."""

    program: Program
    job_env: Mapping[str, str]


def prepare_job(config: JobConfig, env: Mapping[str, str], argv: Sequence[str]) -> Prepared:
    """Find the program, install what it requires, and describe the job to it. Raises MoorageError."""
    # Only the forked process needs them.
    from moorage.contract.program import prepare
    from moorage.contract.requirements import install
    from moorage.contract.sm_env import environment

    program = prepare(config, env, argv)
    install(program.code, env)
    _make_folders(config)
    return Prepared(program=program, job_env=environment(config, program, env))


def _make_folders(config: JobConfig) -> None:
    """Those a program may write to: the platform mounts them, a folder laid out by hand can lack them."""
    for folder in (config.paths.model, config.paths.output_data, config.checkpoint_folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("cannot make the folder %s: %s", folder, error.strerror)


class Preparation:
    """on_done: with what was prepared. on_failed: with the reason. One of them, once, unless it is killed before."""

    def __init__(self, config: JobConfig, work: Callable[[], Prepared]) -> None:
        """Forks: call it before any thread is started."""
        self.on_done: Callable[[Prepared], None] = lambda prepared: None
        self.on_failed: Callable[[Failure], None] = lambda failure: None
        self._config = config
        self._result, result = socket.socketpair()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _in_child(parent, work, host=config.current_host, result=result, stdout=out_write, stderr=err_write)
        # Both do it: whoever of them comes first, the group is there before it can be killed.
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)
        for descriptor in (out_write, err_write):
            os.close(descriptor)
        result.close()
        self._result.setblocking(False)
        self._pipes = (out_read, err_read)
        self._received = bytearray()
        self._over = False
        self._status: int | None = None
        self._stderr: Stream | None = None

    def attach(self, loop: Loop, pump: LogPump) -> None:
        """Its log through the pump, its result through the loop."""
        out_read, err_read = self._pipes
        self._loop = loop
        pump.add(Stream(descriptor=out_read, target=STDOUT))
        self._stderr = Stream(descriptor=err_read, target=STDERR, on_end=lambda: loop.soon(self._died))
        pump.add(self._stderr)
        loop.watch(self._result, selectors.EVENT_READ, self._receive)

    def owns(self, pid: int) -> bool:
        return pid == self.pid and self._status is None

    def ended(self, pid: int, status: int) -> None:
        if self.owns(pid):
            self._status = status
            self._loop.after(1.0, self._died)

    def kill(self) -> None:
        self._over = True
        if self._status is None:
            kill_group(self.pid)

    def _receive(self, _events: int) -> None:
        try:
            data = self._result.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        if data:
            return
        self._loop.watch(self._result, 0, self._receive)
        self._result.close()
        if self._over or not self._received:
            return  # killed, or it died: its status and last lines say more
        self._over = True
        value = json.loads(self._received)
        if "failure" in value:
            self.on_failed(Failure.from_json(value["failure"]))
        else:
            self.on_done(_decode(value))

    def _died(self) -> None:
        """Without a result, when both its end and its last lines are known."""
        if self._over or self._status is None or self._received or self._stderr is None:
            return
        # It sends its result at the very end: that can lie there, not read yet, when its end is heard of.
        if self._result.fileno() >= 0:
            self._receive(selectors.EVENT_READ)
        if self._received:
            return
        self._over = True
        stderr = [line.decode("utf-8", "replace") for line in self._stderr.tail.copy()]
        ending = Ending(rank=0, status=self._status or 1, error_file=NO_ERROR_FILE, stderr=stderr)
        found = diagnose(ending, self._config.current_host)
        said = f": {found.message}" if found.message else ""
        message = f"preparing the job {found.how}{said}"
        self.on_failed(dataclasses.replace(found, rank=None, signal=0, message=message, consequence=False))


def _in_child(
    parent: int, work: Callable[[], Prepared], *, host: str, result: socket.socket, stdout: int, stderr: int
) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        die_with_parent(parent)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        _log_plainly()
        try:
            value = _encode(work())
        except MoorageError as error:
            value = {"failure": Failure.from_error(error, host).to_json()}
        result.sendall(json.dumps(value).encode())
        code = 0
    except BaseException:  # noqa: BLE001  (a fork must never go on as its parent, which reports this traceback)
        os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _log_plainly() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.getLogger("moorage").handlers = [handler]


def _encode(prepared: Prepared) -> dict[str, object]:
    program = prepared.program
    return {
        "argv": program.argv,
        "cwd": str(program.cwd),
        "env": dict(program.env),
        "fingerprint": program.fingerprint,
        "description": program.description,
        "code": str(program.code),
        "entry": program.entry,
        "job_env": dict(prepared.job_env),
    }


def _decode(value: dict[str, object]) -> Prepared:
    job_env = value.pop("job_env")
    assert isinstance(job_env, dict)
    argv, cwd, code = value.pop("argv"), value.pop("cwd"), value.pop("code")
    assert isinstance(argv, list)
    program = Program(argv=tuple(argv), cwd=Path(str(cwd)), code=Path(str(code)), **value)  # type: ignore[arg-type]
    return Prepared(program=program, job_env=job_env)
