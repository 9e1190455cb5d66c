"""`moorage.start()`: the process group, the device, the job, the stop signal."""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

import moorage
from moorage.contract.config import JobConfig
from moorage.contract.paths import Paths
from moorage.errors import MoorageError
from moorage.training.data import mix, seed_all
from moorage.training.ranks import Place
from moorage.training.run import Run
from moorage.training.stop import Phase, StopSignal, leave_now

log = logging.getLogger("moorage")


def start(**defaults: Any) -> Run:
    """Join the job this process belongs to.

    The same program runs under `train`, under torchrun, and by `python program.py`, where it is one rank with its
    folders under SAGEMAKER_BASE_DIR, /opt/ml if it is there, or ./ml.

    defaults: settings of the program's own choice, such as strategy="fsdp"; MOORAGE_* and moorage_* win over them.
    Raises ConfigError for a configuration that cannot be used.
    """
    env = os.environ
    place = Place.from_env(env)
    _log_to_stderr(place)
    stop = StopSignal()
    _report_failures(env, stop)
    stop.install()
    config = _job(env, defaults)
    device = _device(place)
    if "MASTER_ADDR" in env and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            device_id=device if device.type == "cuda" else None,
            timeout=datetime.timedelta(minutes=10),
        )
    if len(config.hosts) > 1 and not dist.is_initialized():
        log.warning(
            "the job has %d hosts and nothing joined them: each trains all by itself, and the last model stays; start "
            "the program by `train` (SDK v3: SourceCode(command='exec train PROGRAM')), or by torchrun",
            len(config.hosts),
        )
    # The model is built alike everywhere; from the first batch on the ranks draw numbers of their own.
    seed_all(mix(config.settings.seed))
    return Run(config=config, place=place, device=device, stop=stop, env=env)


def _job(env: Mapping[str, str], defaults: Mapping[str, Any]) -> JobConfig:
    if "SAGEMAKER_BASE_DIR" in env or Path("/opt/ml/input/config").is_dir():
        paths = Paths.from_env(env)
    else:
        paths = Paths(base=Path("ml").absolute())
    if "TORCHELASTIC_RUN_ID" in env and (paths.config / "resourceconfig.json").exists():
        return JobConfig.read(env, defaults=defaults, paths=paths)
    return JobConfig.local(env, defaults=defaults, paths=paths)


def _device(place: Place) -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def _log_to_stderr(place: Place) -> None:
    logger = logging.getLogger("moorage")
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("moorage: %(message)s"))
    logger.addHandler(handler)
    # What every rank would say alike is said by one.
    logger.setLevel(logging.INFO if place.rank == 0 else logging.WARNING)
    logger.propagate = False


def _report_failures(env: Mapping[str, str], stop: StopSignal) -> None:
    """Leave an uncaught exception where the supervisor looks for it, in the format of torch's @record.

    An error that the user can mend is shown without our own frames, and ends the rank with the exit code of its kind.
    """
    error_file = env.get("TORCHELASTIC_ERROR_FILE")
    default = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if stop.requested and stop.phase is Phase.SET_UP:
            leave_now()  # the peers of this collective have left as they were asked to
        frames = "".join(traceback.format_exception(kind, error, trace))
        if isinstance(error, MoorageError):
            frames = "Traceback (most recent call last):\n" + "".join(traceback.format_list(_frames_of_the_user(trace)))
            log.error("%s: %s", kind.__name__, error)
            sys.stderr.write(frames)
        else:
            default(kind, error, trace)
        if error_file and not Path(error_file).exists():
            extra = {"py_callstack": frames, "timestamp": str(int(time.time()))}
            message = {"message": {"message": f"{kind.__name__}: {error}", "extraInfo": extra}}
            Path(error_file).write_text(json.dumps(message), encoding="utf-8")
        if isinstance(error, MoorageError):
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(error.exit_code)

    sys.excepthook = hook


def _frames_of_the_user(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    ours = str(Path(moorage.__file__).parent)
    return [frame for frame in traceback.extract_tb(trace) if not frame.filename.startswith(ours)]
