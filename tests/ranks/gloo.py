"""Run a function of a test on real ranks: processes with a gloo group, started from a server that has torch loaded."""

from __future__ import annotations

import importlib.util
import multiprocessing
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PRELOAD = ["torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "accelerate"]


class RankFailed(AssertionError):
    """A rank raised, died, or was too late."""


def run_ranks(body: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60.0) -> list[Any]:
    """What `body(rank, *args)` returns on each of `world_size` ranks, by rank.

    body: a function at the top level of a test module. Arguments and results are pickled. Raises RankFailed with the
    traceback of the first rank that raised, or after `timeout` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            job = (body.__code__.co_filename, body.__name__, args)
            process = context.Process(target=_rank, args=(sender, rank, world_size, folder, job), daemon=True)
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return _collect(pipes, deadline)
        finally:
            for process in processes:
                process.join(1)
                process.kill()
                process.join()


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        pending = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(pending, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailed(f"ranks {sorted(set(range(len(pipes))) - set(results))} did not finish in time")
        for rank, pipe in enumerate(pipes):
            if pipe not in ready:
                continue
            try:
                good, value = pickle.loads(pipe.recv_bytes())  # noqa: S301 - our own process
            except EOFError:
                raise RankFailed(f"rank {rank} died") from None
            if not good:
                raise RankFailed(f"rank {rank} raised:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _rank(sender: Connection, rank: int, world_size: int, folder: str, job: tuple[str, str, tuple[Any, ...]]) -> None:
    import torch
    import torch.distributed as dist

    try:
        warnings.simplefilter("error")
        torch.set_num_threads(1)
        path, name, args = job
        body = getattr(_load(path), name)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
        answer = (True, body(rank, *args))
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 - whatever it was, the test shows it
        answer = (False, traceback.format_exc())
    sender.send_bytes(pickle.dumps(answer))
    sender.close()


def _load(path: str) -> Any:
    """The module of the test, by file: pytest's own name for it means nothing to another process."""
    name = f"body_of_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
