"""The model processes, as the front sees them: started, watched, replaced, and ended.

    starting -> ready -> gone -> starting ...

One that fails to load three times in a row ends the container, for a fourth time would be no different.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage.contract.progress import STACK_SIGNAL
from moorage.errors import ModelError, MoorageError
from moorage.processes.children import kill_group, reap, start_process
from moorage.processes.logs import STDERR, STDOUT, LogPump, Stream
from moorage.serving import wire
from moorage.serving.arena import Arena
from moorage.serving.dispatch import Channel, Dispatcher, Reject
from moorage.serving.metrics import Metrics
from moorage.serving.page import Page
from moorage.serving.settings import ServeSettings
from moorage.serving.worker import WorkerSpec

FAILURES = 3
"""Failures to load, one after the other, that end the container."""

_BACKOFF = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before a process is replaced, by how often one has ended soon."""

_LASTING = 30.0
"""Seconds of being ready, or one answer, after which a process is replaced at once: it was no crash loop."""

_LOOK = 0.25
"""Seconds between two looks at whether a process is stuck, or has ended."""

_DYING = 0.01
"""Seconds from the end of a process's socket to that of the process."""

_STACKS = 1.0
"""Seconds for one that is stuck to write its stacks."""

_READ = 256 * 1024

logger = logging.getLogger("moorage")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What model processes are started with. devices: one for each, as torch names them."""

    devices: tuple[str, ...]
    folder: Path
    settings: ServeSettings
    env: Mapping[str, str]
    servable: str


class Worker:
    """One place for a model process, which has one after the other."""

    def __init__(self, index: int, owner: Workers) -> None:
        self.index, self._owner = index, owner
        self.pid = 0
        self.ready = False
        self.failures = 0
        self.reason = ""
        self._short = 0
        self._since = 0.0
        self._channel: Channel | None = None
        self._socket: socket.socket | None = None
        self._page: Page | None = None
        self._frames = wire.Frames()
        self._out = bytearray()
        self._flushing = False
        self._blocked = False
        self._told: str | None = None

    @property
    def name(self) -> str:
        return f"model process {self.index}"

    def start(self) -> None:
        """Raises ProgramError."""
        owner = self._owner
        if owner.ending:
            return
        plan = owner.plan
        ours, theirs = socket.socketpair()
        self._page = Page.make()
        spec = WorkerSpec(
            index=self.index, device=plan.devices[self.index], folder=str(plan.folder), servable=plan.servable,
            parent=os.getpid(), socket=theirs.fileno(), arena=owner.arena.descriptor, arena_size=owner.arena.capacity,
            page=self._page.descriptor,
        )  # fmt: skip
        inherited = (spec.socket, spec.arena, spec.page)
        started = start_process(spec.argv(), env=plan.env, cwd=Path("/"), inherited=inherited)
        theirs.close()
        prefix = f"[model:{self.index}] ".encode() if len(plan.devices) > 1 else b""
        for descriptor, target in ((started.stdout, STDOUT), (started.stderr, STDERR)):
            owner.pump.add(Stream(descriptor=descriptor, target=target, prefix=prefix))
        ours.setblocking(False)
        self.pid, self._socket, self._since = started.pid, ours, time.monotonic()
        self._frames, self._out, self._blocked, self._told = wire.Frames(), bytearray(), False, None
        owner.loop.add_reader(ours.fileno(), self._readable)

    # What it says

    def _readable(self) -> None:
        if self._receive():
            self._owner.dispatcher.settled()

    def _receive(self) -> bool:
        """Whether there was something."""
        assert self._socket is not None
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._owner.loop.remove_reader(self._socket.fileno())
            self._owner.loop.call_later(_DYING, self._owner.reap)
            return False
        channel, dispatcher = self._channel, self._owner.dispatcher
        for frame in self._frames.feed(data):
            if channel is not None:
                dispatcher.heard(channel, frame)
            elif wire.kind_of(frame) == wire.READY:
                self._is_ready(wire.text_of(frame))
                channel = self._channel
            else:
                self._told = wire.text_of(frame)
        return True

    def _is_ready(self, said: str) -> None:
        logger.info("%s is ready after %.1f s: %s", self.name, time.monotonic() - self._since, said)
        self.failures, self.ready, self._since = 0, True, time.monotonic()
        self._owner.loaded = True
        self._channel = Channel(self.write)
        self._owner.dispatcher.join(self._channel)

    def write(self, frame: bytes) -> None:
        """Frames of one turn of the loop go in one system call."""
        self._out += frame
        if not self._flushing:
            self._flushing = True
            self._owner.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._socket is None or self._blocked:
            return
        try:
            del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            self._out.clear()  # it is gone, which the loop is about to hear
        if self._out:
            self._blocked = True
            self._owner.loop.add_writer(self._socket.fileno(), self._writable)

    def _writable(self) -> None:
        assert self._socket is not None
        self._owner.loop.remove_writer(self._socket.fileno())
        self._blocked = False
        self._flush()

    # Its end

    def ended(self, code: int) -> None:
        """Replace it."""
        assert self._socket is not None and self._page is not None
        while self._receive():  # answers that it had sent
            pass
        self._owner.loop.remove_reader(self._socket.fileno())
        if self._blocked:
            self._owner.loop.remove_writer(self._socket.fileno())
        self._socket.close()
        was_ready, lasted = self.ready, time.monotonic() - self._since
        worked = was_ready and (lasted > _LASTING or (self._channel is not None and self._channel.seconds > 0))
        begun, self.pid, self.ready, self._socket = self._page.begun, 0, False, None
        self._page.close()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if was_ready:
            self._was_lost(f"{how}{f', for {self.reason}' if self.reason else ''}", begun)
        elif not self._owner.ending:
            self._failed_to_load(how, code)
        self.reason = ""
        if self._owner.ending:
            return
        self._short = 0 if worked else self._short + 1
        pause = _BACKOFF[min(max(0, self._short - 1), len(_BACKOFF) - 1)]
        if pause:
            logger.info("%s is started again in %g s", self.name, pause)
        self._owner.loop.call_later(pause, self.start)

    def _was_lost(self, how: str, begun: int) -> None:
        channel, self._channel = self._channel, None
        assert channel is not None
        reject = Reject(503, "the model process that had this request ended; try again", reason="lost", retry_after=1)
        failed, again = self._owner.dispatcher.lost(channel, begun, reject)
        if not self._owner.ending:
            self._owner.metrics.respawned()
            logger.error("%s %s: %d requests failed with it, %d are given to another", self.name, how, failed, again)

    def _failed_to_load(self, how: str, code: int) -> None:
        self.failures += 1
        why = self._told or self.reason or f"it {how}; its log above says more"
        logger.error("%s could not load the model (%d of %d): %s", self.name, self.failures, FAILURES, why)
        if self.failures >= FAILURES:
            self._owner.give_up(ModelError("the model cannot be loaded", why=why), code if self._told else 0)

    def hang_up(self) -> None:
        """Its side reads the end, and leaves."""
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_WR)

    # The watch

    def look(self, settings: ServeSettings) -> None:
        if not self.pid or self.reason or self._page is None:
            return
        if not self.ready and time.monotonic() - self._since > settings.load_timeout:
            self._end_it(f"loading for longer than {settings.load_timeout:g} s (MOORAGE_LOAD_TIMEOUT)")
        elif self.ready and self._page.busy_seconds() > settings.stuck_seconds:
            self._end_it(f"being at one batch for longer than {settings.stuck_seconds:g} s (MOORAGE_STUCK_TIMEOUT)")

    def _end_it(self, reason: str) -> None:
        """With its stacks in the log."""
        self.reason = reason
        logger.error("%s is stuck, and is ended: %s. What it was at:", self.name, reason)
        pid = self.pid
        os.kill(pid, STACK_SIGNAL)
        self._owner.loop.call_later(_STACKS, self._kill, pid)

    def _kill(self, pid: int) -> None:
        if self.pid == pid:  # else it has ended by itself
            kill_group(pid)

    def moves(self, settings: ServeSettings) -> bool:
        """Whether it can be expected to answer."""
        return self.ready and self._page is not None and self._page.busy_seconds() <= settings.stuck_seconds


class Workers:
    """All of them. on_fatal: called once, with why there will be no model, and the exit code."""

    def __init__(
        self, plan: Plan, *, loop: asyncio.AbstractEventLoop, dispatcher: Dispatcher, arena: Arena, pump: LogPump,
        metrics: Metrics, on_fatal: Callable[[MoorageError], None],
    ) -> None:  # fmt: skip
        self.plan, self.loop, self.dispatcher, self.arena = plan, loop, dispatcher, arena
        self.pump, self.metrics, self._on_fatal = pump, metrics, on_fatal
        self.ending = self.loaded = False
        self._all = [Worker(index, self) for index in range(len(plan.devices))]
        self._watch: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Raises ProgramError."""
        for worker in self._all:
            worker.start()
        self._look()

    @property
    def ready(self) -> int:
        return sum(worker.ready for worker in self._all)

    @property
    def alive(self) -> bool:
        """What /ping says: whether a model would answer."""
        return any(worker.moves(self.plan.settings) for worker in self._all)

    @property
    def pids(self) -> Sequence[int]:
        return [worker.pid for worker in self._all if worker.pid]

    def give_up(self, error: MoorageError, code: int) -> None:
        if not self.ending:
            if code:
                error.exit_code = code
            self._on_fatal(error)

    def reap(self) -> None:
        """The loop keeps SIGCHLD to itself: the end of a socket says as much, and for orphans there is time."""
        workers = {worker.pid: worker for worker in self._all if worker.pid}
        for pid, code in reap(workers.__contains__):
            if pid in workers:
                workers[pid].ended(code)

    def _look(self) -> None:
        self.reap()
        for worker in self._all:
            worker.look(self.plan.settings)
        self._watch = self.loop.call_later(_LOOK, self._look)

    async def end(self, seconds: float) -> None:
        """Nobody is answered any more. Those that do not leave by themselves, as their socket closes, are killed."""
        self.ending = True
        if self._watch is not None:
            self._watch.cancel()
        until = self.loop.time() + seconds
        for worker in self._all:
            worker.hang_up()
        while self.pids and self.loop.time() < until:
            await asyncio.sleep(_DYING)
            self.reap()
        for pid in self.pids:
            kill_group(pid)
        while self.pids and self.loop.time() < until + 1:
            await asyncio.sleep(_DYING)
            self.reap()
