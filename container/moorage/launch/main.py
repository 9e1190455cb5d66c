"""The command `train`: read, detect, prepare, agree, supervise, report."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from moorage.cluster import Cluster, detect
from moorage.contract.config import JobConfig
from moorage.contract.failure import Failure, job_secrets, remove_stale, write_failure
from moorage.contract.ledger import next_launch, read_ledger
from moorage.contract.paths import Paths
from moorage.contract.secrets import known_secrets
from moorage.errors import ConfigError, MoorageError
from moorage.launch.account import account
from moorage.launch.agreement import Agreement
from moorage.launch.control import FirstHost, Link
from moorage.launch.loop import Loop
from moorage.launch.ports import free_port
from moorage.launch.preparation import Preparation, prepare_job
from moorage.launch.restart import Streak
from moorage.launch.supervisor import Supervisor, Verdict
from moorage.launch.tracking import record_failure
from moorage.launch.uplink import OtherHost
from moorage.processes.children import adopt_orphans
from moorage.processes.logs import LineFormatter, LogPump, PumpHandler

HELP = """\
train [PROGRAM [ARGS...]]    run a SageMaker training job on this host

What SageMaker starts in a training container, as PID 1. It reads the job's folder, finds the training program, and
starts one process per GPU, or one where there is only a CPU, with the environment of torchrun, on all hosts together.

  PROGRAM    a .py or .sh file, an executable, or -m MODULE. Without it: what the hyperparameter sagemaker_program
             names, else train.py or main.py in /opt/ml/code, the channel 'code' or /opt/program.
  ARGS       passed on to it, after the hyperparameters as --key value.

On a machine of your own, a folder stands for /opt/ml:

  mkdir -p job/input/config job/code
  echo '{"current_host": "algo-1", "hosts": ["algo-1"]}' > job/input/config/resourceconfig.json
  echo '{"epochs": "3", "moorage_ranks_per_host": "2"}'  > job/input/config/hyperparameters.json
  cp my_program.py job/code/train.py
  SAGEMAKER_BASE_DIR=$PWD/job train

Settings are MOORAGE_* in the environment or moorage_* hyperparameters; `moorage settings` lists them.
SIGTERM stops the job with its state saved. When a rank dies, all ranks start again from the last checkpoint.

Exit codes: 0 the program finished; 143 stopped by SIGTERM; 137 not stopped in time; else that of the rank which failed
first, 128 + n if signal n killed it. Before a rank runs: 78 configuration, 66 program, 65 requirements, 69 hosts.
After a failure, output/failure says in 1024 characters what went wrong.
"""

logger = logging.getLogger("moorage")


def main(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run the job of this host; returns the exit code. Call it in the main thread of a process of its own."""
    if list(argv[:1]) in (["-h"], ["--help"], ["help"]):
        sys.stdout.write(HELP)
        return 0
    loop = Loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # PID 1 never hears of a signal without a handler. What comes before the supervisor listens waits in the loop.
        loop.on_signal(number, _nothing)
    _log_to(logging.StreamHandler())
    paths = Paths.from_env(env)
    if env.get("SAGEMAKER_BASE_DIR"):
        # The ranks have a working folder of their own, from which a relative path would lead elsewhere.
        env = {**env, "SAGEMAKER_BASE_DIR": str(paths.base)}
    try:
        remove_stale(paths.failure)
        return _run(loop, JobConfig.read(env), argv, env)
    except MoorageError as error:
        return _report(Verdict(code=error.exit_code, failure=Failure.from_error(error, "")), paths, known_secrets(env))
    finally:
        # The exit code is settled. Python's own end would bring back the default, and a late stop would change it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        loop.close()


def _run(loop: Loop, config: JobConfig, argv: Sequence[str], env: Mapping[str, str]) -> int:
    adopt_orphans()
    run_folder = _make_run_folder()
    # It forks, so no thread runs yet. Meanwhile this process looks at the cluster.
    preparation = Preparation(config, lambda: prepare_job(config, env, argv))
    pump = LogPump()
    _log_to(PumpHandler(pump))
    try:
        supervisor = Supervisor(
            loop=loop,
            pump=pump,
            link=_link(loop, config),
            config=config,
            preparation=preparation,
            env=env,
            run_folder=run_folder,
        )
        try:
            cluster = detect(config, env)
        except MoorageError as error:
            supervisor.refuse(error)
        else:
            _describe(cluster)
            supervisor.take_part(cluster)
        verdict = supervisor.run()
        account(config)
        secrets = job_secrets(env, config.raw["hyperparameters"])
        code = _report(verdict, config.paths, secrets)
        if verdict.failure is not None:
            record_failure(config, env, code=code, why=verdict.failure.redacted(secrets).text())
        return code
    finally:
        preparation.kill()
        shutil.rmtree(run_folder, ignore_errors=True)
        pump.close()


def _link(loop: Loop, config: JobConfig) -> Link:
    if config.host_rank > 0:
        return OtherHost(loop, config)
    history = read_ledger(config.checkpoint_folder)
    agreement = Agreement(
        hosts=config.hosts,
        settings=config.settings,
        pick_port=lambda: free_port(taken=config.settings.control_port),
        started=time.monotonic(),
        launch=next_launch(history),
        streak=Streak.of(history),
    )
    return FirstHost(loop, config, agreement)


def _describe(cluster: Cluster) -> None:
    logger.info("%s", cluster.describe())
    for warning in cluster.warnings:
        logger.warning("%s", warning)


def _report(verdict: Verdict, paths: Paths, secrets: Sequence[str]) -> int:
    if verdict.failure is not None:
        logger.error("%s", verdict.failure.redacted(secrets).text(limit=8192))
        write_failure(paths.failure, verdict.failure, secrets)
    logger.info("exit code %d%s", verdict.code, f": {verdict.why}" if verdict.why else "")
    return verdict.code


def _make_run_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="moorage-"))
    except OSError as error:
        raise ConfigError(
            "there is no folder for temporary files",
            why=str(error),
            fix="make /tmp writable, or set TMPDIR to a folder that is",
        ) from None


def _log_to(handler: logging.Handler) -> None:
    handler.setFormatter(LineFormatter())
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


def _nothing() -> None:
    pass
