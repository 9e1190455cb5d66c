"""A DDP loop that saves by one of the ways people use today: pause_peers.py METHOD FOLDER."""

from __future__ import annotations

import copy
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from state import Whole, batch, build_model, build_optimizer, loss_of
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.nn.parallel import DistributedDataParallel
from window import take_turns


def done() -> bool:
    return True


class Loop:
    def __init__(self) -> None:
        dist.init_process_group("gloo")
        self.model: Any = DistributedDataParallel(build_model())
        self.optimizer: Any = build_optimizer(self.model)
        self.x = batch()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.backward(loss_of(self.model, self.x))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}


class AccelerateLoop(Loop):
    def __init__(self) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=True)
        model = build_model()
        self.model, self.optimizer = self.accelerator.prepare(model, build_optimizer(model))
        self.x = batch()

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def save(self, folder: Path) -> Whole:
        self.accelerator.save_state(str(folder))
        return done


def torch_save(loop: Loop, folder: Path) -> Whole:
    if dist.get_rank() == 0:
        folder.mkdir()
        torch.save({"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}, folder / "state.pt")
    return done


def torch_save_in_thread(loop: Loop, folder: Path) -> Whole:
    if dist.get_rank():
        return done
    folder.mkdir()
    state = copy.deepcopy({"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()})
    thread = threading.Thread(target=torch.save, args=(state, folder / "state.pt"))
    thread.start()
    return lambda: not thread.is_alive()


def dcp_save(loop: Loop, folder: Path) -> Whole:
    dcp.save(loop.state(), checkpoint_id=folder)
    return done


class DcpAsync:
    def __init__(self) -> None:
        # On the default group it deadlocks as soon as the loop runs a collective meanwhile.
        self.group = dist.new_group(backend="gloo")

    def __call__(self, loop: Loop, folder: Path) -> Whole:
        future: Any = dcp.async_save(loop.state(), checkpoint_id=folder, process_group=self.group)
        return lambda: bool(future.done())


class MemoryCopy:
    """The least a save behind the loop can do: one copy of the state, into memory that is already there."""

    def __init__(self) -> None:
        self.copies: list[torch.Tensor] = []

    def __call__(self, loop: Loop, _folder: Path) -> Whole:
        tensors = [*loop.model.parameters()]
        tensors += [value for state in loop.optimizer.state.values() for value in state.values() if value.dim()]
        if not self.copies:
            self.copies = [torch.empty_like(tensor) for tensor in tensors]
        with torch.no_grad():
            for copy, tensor in zip(self.copies, tensors, strict=True):
                copy.copy_(tensor)
        return done


def main(method: str, folder: Path) -> None:
    loop = AccelerateLoop() if method == "accelerate" else Loop()
    assert dist.get_world_size() == 2
    ways: dict[str, Callable[[], Callable[[Path], Whole]]] = {
        "torch.save": lambda: partial(torch_save, loop),
        "torch.save-in-a-thread": lambda: partial(torch_save_in_thread, loop),
        "accelerate": lambda: loop.save,  # type: ignore[attr-defined]
        "dcp.save": lambda: partial(dcp_save, loop),
        "dcp.async_save": lambda: partial(DcpAsync(), loop),
        "memory-copy": lambda: partial(MemoryCopy(), loop),
    }
    way = ways[method]()

    def clean(number: int) -> None:
        # Two are kept, as the toolkit does: memory just freed would make the next save look cheap.
        if dist.get_rank() == 0:
            shutil.rmtree(folder / str(number - 2), ignore_errors=True)

    take_turns(step=loop.step, save=lambda number: way(folder / str(number)), clean=clean)
    dist.barrier()
    dist.destroy_process_group()


main(sys.argv[1], Path(sys.argv[2]))
