"""A model process: loads the model, says that it is ready, and answers what the front sends until that is gone."""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from moorage.contract.progress import STACK_SIGNAL
from moorage.errors import ModelError, MoorageError
from moorage.processes.children import die_with_parent
from moorage.processes.logs import LineFormatter
from moorage.serving.answering import Answering
from moorage.serving.arena import Bodies
from moorage.serving.exchange import Servable
from moorage.serving.page import Page
from moorage.serving.settings import ServeSettings
from moorage.serving.wire import FAILED, READY, pack_text

LOADING = "moorage.serving.loading:load"
"""What loads the model, unless a test says otherwise."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """socket, arena, page: descriptors. servable: MODULE:FUNCTION, called as `moorage.serving.loading.load` is."""

    index: int
    device: str
    folder: str
    servable: str
    parent: int
    socket: int
    arena: int
    arena_size: int
    page: int

    def argv(self) -> tuple[str, ...]:
        # -P: a file of the working folder must not take the place of a library.
        return (sys.executable, "-P", "-m", __name__, json.dumps(asdict(self)))


def main(argv: Sequence[str], env: Mapping[str, str]) -> int:
    spec = WorkerSpec(**json.loads(argv[0]))
    die_with_parent(spec.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(STACK_SIGNAL, file=sys.stderr, all_threads=True, chain=False)
    _log()
    channel = socket.socket(fileno=spec.socket)
    # They are ours, and not of what the model starts.
    for descriptor in (spec.socket, spec.arena, spec.page):
        os.set_inheritable(descriptor, False)
    try:
        servable = _load(spec, env)
        said = servable.warm_up()
    except MoorageError as error:
        channel.sendall(pack_text(FAILED, str(error)))
        return error.exit_code
    channel.sendall(pack_text(READY, f"{servable.describe()}; {said}" if said else servable.describe()))
    Answering(
        channel, servable, bodies=Bodies(spec.arena, spec.arena_size), page=Page(spec.page)
    ).run_until_the_front_is_gone()
    return 0


def _load(spec: WorkerSpec, env: Mapping[str, str]) -> Servable:
    module, _, function = spec.servable.partition(":")
    try:
        load: Callable[..., Servable] = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ModelError(f"there is no module {module}", fix="name what loads the model as MODULE:FUNCTION") from None
    return load(Path(spec.folder), ServeSettings.read(env), device=spec.device, env=env)


def _log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logger = logging.getLogger("moorage")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    code = 1
    try:
        code = main(sys.argv[1:], os.environ.copy())
    except Exception:
        logging.getLogger("moorage").exception("the model process ends")
    sys.stdout.flush()
    sys.stderr.flush()
    # Python's own end would wait for the model's threads.
    os._exit(code)
