"""The command `serve`: read the settings, start the model processes, answer until told to stop."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from moorage.cluster import host
from moorage.cluster.devices import Devices
from moorage.cluster.devices import look as look_for_devices
from moorage.cluster.system import MACHINE
from moorage.contract.paths import Paths
from moorage.contract.secrets import known_secrets, redact
from moorage.errors import ConfigError, MoorageError, describe
from moorage.processes.children import adopt_orphans, kill_children
from moorage.processes.logs import STDOUT, LineFormatter, LogPump, PumpHandler
from moorage.serving import prometheus
from moorage.serving.access import AccessLog
from moorage.serving.app import App
from moorage.serving.arena import Arena
from moorage.serving.dispatch import Dispatcher, Reject
from moorage.serving.metrics import Gauge, Metrics
from moorage.serving.server import BACKLOG, Front
from moorage.serving.settings import ServeSettings, port
from moorage.serving.worker import LOADING
from moorage.serving.workers import Plan, Workers

HELP = """\
serve [MODEL_DIR]    answer with a trained model, as SageMaker asks for it

What SageMaker starts in a container for inference, as PID 1. It loads the model of /opt/ml/model into one process per
GPU, or one where there is only a CPU, and answers on port 8080, or on SAGEMAKER_BIND_TO_PORT:

  GET  /ping                    200 when a model would answer, else 503
  POST /invocations             one request; JSON, CSV, NPY or JSON lines, unless the model's code says otherwise
  GET  /execution-parameters    what batch transform asks

  MODEL_DIR   the model folder, unpacked. Without it: model, in the folder of the contract.

What is served without code: what run.finish() wrote of a model that run.build() made, a .pt2 of torch.export,
TorchScript. All else by code/inference.py in the model folder, with model_fn, input_fn, predict_fn, output_fn.

Settings are MOORAGE_* in the environment; docs/serving.md lists them. SIGTERM: accepted requests are answered first.

Exit codes: 0 stopped by SIGTERM; 72 the model cannot be loaded; 78 a setting cannot be used.
"""

LEAVING = 1.0
"""Seconds for model processes to leave by themselves."""

EMF_EVERY = 60.0
"""Seconds between two lines of CloudWatch's format."""

logger = logging.getLogger("moorage")


def main(argv: Sequence[str], env: Mapping[str, str], *, servable: str = LOADING) -> int:
    """Serve until SIGTERM; returns the exit code. Call it in the main thread of a process of its own.

    servable: what loads the model, as MODULE:FUNCTION.
    """
    if list(argv[:1]) in (["-h"], ["--help"], ["help"]):
        sys.stdout.write(HELP)
        return 0
    _log_to(logging.StreamHandler())
    adopt_orphans()
    try:
        settings = ServeSettings.read(env)
        _allow_files(settings.max_connections)
        plan = _plan(_folder(argv, env), settings, env, servable)
        listener = _listen(port(env))
    except MoorageError as error:
        return _report(error, env)
    pump = LogPump()
    _log_to(PumpHandler(pump))
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            fatal = runner.run(_serve(plan, listener, pump))
    finally:
        kill_children()
        pump.close()
        _log_to(logging.StreamHandler())
    if fatal is not None:
        return _report(fatal, env)
    logger.info("exit code 0: stopped as asked")
    return 0


async def _serve(plan: Plan, listener: socket.socket, pump: LogPump) -> MoorageError | None:
    """Until it is asked to stop, or there can be no model: then why."""
    loop, settings = asyncio.get_running_loop(), plan.settings
    over: asyncio.Future[MoorageError | None] = loop.create_future()

    def end(error: MoorageError | None = None) -> None:
        if not over.done():
            over.set_result(error)

    dispatcher = Dispatcher(
        max_batch_size=settings.max_batch_size, max_queue_delay=settings.max_queue_delay_us / 1e6,
        max_queue=settings.max_queue, clock=time.monotonic, later=loop.call_later,
    )  # fmt: skip
    arena = Arena(max(_ARENA, 4 * settings.max_body_bytes))
    metrics = Metrics(
        Gauge(name="queue_depth", doc="Requests that wait for a model process.", read=lambda: dispatcher.queued),
        Gauge(name="in_flight", doc="Requests that model processes have.", read=lambda: dispatcher.given),
        Gauge(name="workers_ready", doc="Model processes that are ready.", read=lambda: workers.ready),
        dimensions=settings.dimensions,
    )
    workers = Workers(
        plan, loop=loop, dispatcher=dispatcher, arena=arena, pump=pump, metrics=metrics, on_fatal=end
    )  # fmt: skip
    access = AccessLog(pump, target=STDOUT, later=loop.call_later, enabled=settings.access_log)
    app = App(
        settings, dispatcher=dispatcher, arena=arena, metrics=metrics, access=access, alive=lambda: workers.alive,
        loading=lambda: not workers.loaded, workers=len(plan.devices), loop=loop,
    )  # fmt: skip
    front = Front(app, listener, settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    workers.start()
    await front.open()
    page = await prometheus.listen(metrics.prometheus, settings.metrics_port) if settings.metrics_port else None
    told = asyncio.create_task(_tell(metrics, pump)) if settings.emf else None
    logger.info("listening on port %d", listener.getsockname()[1])

    error = await over
    if error is None:
        logger.info("asked to stop: %d requests are answered first", dispatcher.queued + dispatcher.given)
    else:
        dispatcher.refuse_all(Reject(503, "there is no model", reason="no_model"))
    cut = await front.end(settings.drain if error is None else LEAVING)
    if cut:
        logger.warning("%d connections were cut: MOORAGE_DRAIN is %g s", cut, settings.drain)
    await workers.end(LEAVING)
    if page is not None:
        page.close()
    if told is not None:
        told.cancel()
        pump.say(metrics.emf(), STDOUT)
    access.flush()
    return error


_ARENA = 2**30
"""Bytes of address space for bodies; memory is taken as they come."""


async def _tell(metrics: Metrics, pump: LogPump) -> None:
    while True:
        await asyncio.sleep(EMF_EVERY)
        pump.say(metrics.emf(), STDOUT)


def _allow_files(connections: int) -> None:
    """As many as there may be connections: without, the next accept would fail, again and again. Raises ConfigError."""
    wanted = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigError(
            f"setting max_connections={connections} needs {wanted} open files",
            why=f"this container may have {hard}",
            fix=f"lower it to {max(1, hard - _OTHER_FILES)}, or start the container with --ulimit nofile={wanted}",
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


_OTHER_FILES = 256


def _folder(argv: Sequence[str], env: Mapping[str, str]) -> Path:
    if len(argv) > 1:
        raise ConfigError(f"serve takes one folder, and was given {len(argv)}", fix="see serve --help")
    folder = Path(argv[0]).absolute() if argv else Paths.from_env(env).model
    if not folder.is_dir():
        raise ConfigError(
            f"there is no model folder {folder}",
            why="the platform unpacks the model there; a local run mounts it",
            fix="name another: serve MODEL_DIR",
        )
    return folder


def _plan(folder: Path, settings: ServeSettings, env: Mapping[str, str], servable: str) -> Plan:
    """Which model process computes on what, each with its reason in the log."""
    machine = host.look(MACHINE)
    found, reasons, warnings = look_for_devices(MACHINE, env, instance_type="", memory=machine.memory)
    for reason in reasons:
        logger.info("%-10s %s  %s", reason.what, reason.value, reason.why)
    for warning in warnings:
        logger.warning("%s", warning)
    devices = _devices(settings, found)
    threads = settings.num_threads or max(1, machine.num_cpus // len(devices))
    logger.info("workers    %s  of %d threads each", ", ".join(devices), threads)
    given = {**env, "OMP_NUM_THREADS": str(threads)} if settings.num_threads or "OMP_NUM_THREADS" not in env else env
    if found.compat:
        libraries = ":".join(filter(None, (found.compat, env.get("LD_LIBRARY_PATH", ""))))
        given = {**given, "LD_LIBRARY_PATH": libraries}
    return Plan(devices=devices, folder=folder, settings=settings, env=given, servable=servable)


def _devices(settings: ServeSettings, found: Devices) -> tuple[str, ...]:
    if settings.device == "cpu" or (settings.device == "auto" and found.kind != "cuda"):
        return ("cpu",) * (settings.workers or 1)
    if found.kind != "cuda":
        raise ConfigError(
            f"setting device={settings.device}, but no NVIDIA GPU can be used here",
            why="the lines above say what was found",
            fix="set it to auto, or run the container with its GPUs (--gpus all)",
        )
    if ":" in settings.device:
        return (settings.device,) * (settings.workers or 1)
    return tuple(f"cuda:{index % found.count}" for index in range(settings.workers or found.count))


def _listen(number: int) -> socket.socket:
    """IPv6 and IPv4 where the container has both."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", number), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
    except OSError as error:
        logger.info("no IPv6: %s", describe(error))
    try:
        return socket.create_server(("", number), backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"port {number} cannot be listened on",
            why=describe(error),
            fix="end what listens there, or set SAGEMAKER_BIND_TO_PORT to another",
        ) from None


def _report(error: MoorageError, env: Mapping[str, str]) -> int:
    logger.error("%s", redact(str(error), known_secrets(env)))
    logger.info("exit code %d", error.exit_code)
    return error.exit_code


def _log_to(handler: logging.Handler) -> None:
    handler.setFormatter(LineFormatter())
    for name, level in (("moorage", logging.INFO), ("uvicorn.error", logging.WARNING)):
        found = logging.getLogger(name)
        found.handlers, found.propagate = [handler], False
        found.setLevel(level)


if __name__ == "__main__":
    import os

    sys.exit(main(sys.argv[1:], os.environ.copy()))
