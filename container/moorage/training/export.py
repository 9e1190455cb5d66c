"""Write the model a job has trained: model.safetensors, and model.json with what is known of it."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import moorage
from moorage.errors import ExportError
from moorage.training.parallel import unwrap
from moorage.training.tensorfile import DTYPES, Layout, write_tensor

WEIGHTS, FACTS = "model.safetensors", "model.json"

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def export(
    model: nn.Module,
    folder: Path,
    facts: Mapping[str, Any],
    *,
    is_main: bool,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write WEIGHTS and FACTS into `folder`, from global rank 0, which is the one that `is_main`. Collective.

    A sharded model is gathered one tensor at a time: no device, nor rank 0's memory, ever holds the whole. Names are
    those of the program's own module. Tensors that share memory are each written, so that load_state_dict finds all of
    them, and named in FACTS under "shared". facts: anything JSON can hold. beside: other files, by their paths there.
    Raises ExportError, on every rank and with nothing left behind, when a file cannot be written.
    """
    module = unwrap(model)
    tensors = {_canonical(k): t for k, t in module.state_dict().items() if isinstance(t, Tensor)}
    try:
        layout = Layout.of(tensors)
        text = json.dumps({**facts, **describe(module, tensors), "bytes": layout.size}, indent=2)
    except KeyError as error:
        raise ExportError(
            f"{WEIGHTS} cannot hold the tensor {error.args[0]}", fix="leave it out of the model's state_dict"
        ) from None
    except TypeError as error:
        raise ExportError(
            f"{FACTS} cannot hold the facts given", why=str(error), fix="give what JSON can hold"
        ) from None
    files = _Files(folder, is_main, {**(beside or {}), FACTS: f"{text}\n".encode()})
    files.begin(layout.header)
    files.agree()
    for name in layout.names:
        files.add(_gather(tensors[name]))
    files.publish()
    files.agree()


def describe(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a reader of the weights wants to know: class, counts, versions, and each tensor's type and shape."""
    # fully_shard puts classes of its own before the program's.
    kind = type(module).__mro__[2] if isinstance(module, FSDPModule) else type(module)
    dtypes = Counter(DTYPES[tensor.dtype] for tensor in tensors.values())
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "num_params": sum(p.numel() for p in module.parameters()),
        "trainable_params": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "dtypes": dict(dtypes),
        "tensors": {name: {"dtype": DTYPES[t.dtype], "shape": list(t.shape)} for name, t in tensors.items()},
        "shared": _shared(module),
        "moorage": moorage.__version__,
        "torch": torch.__version__,
    }


class _Files:
    """The main rank's files. A failure is kept until all ranks hear of it: else they would wait for the main rank in
    the next collective."""

    def __init__(self, folder: Path, is_main: bool, small: Mapping[str, bytes]) -> None:
        self._folder, self._is_main, self._small = folder, is_main, small
        paths = {name: folder / name for name in (WEIGHTS, *small)}
        self._parts = {path: path.with_name(f".{path.name}.part") for path in paths.values()}
        self._weights: IO[bytes] | None = None
        self._failure = ""

    def begin(self, header: bytes) -> None:
        with self._on_main() as active:
            if active:
                for name, content in self._small.items():
                    path = self._folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with self._parts[path].open("wb") as file:
                        file.write(content)
                        _flush(file)
                self._weights = self._parts[self._folder / WEIGHTS].open("wb")
                self._weights.write(header)

    def add(self, tensor: Tensor) -> None:
        with self._on_main() as active:
            if active and self._weights is not None:
                write_tensor(self._weights, tensor)

    def publish(self) -> None:
        """Make the parts the files: the facts last, so that they never describe other weights."""
        with self._on_main() as active:
            if active and self._weights is not None:
                _flush(self._weights)
                self._weights.close()
                for path, part in self._parts.items():
                    part.replace(path)

    def agree(self) -> None:
        """Raise ExportError on every rank if the main rank failed. Collective."""
        failure = [self._failure]
        if dist.is_initialized():
            dist.broadcast_object_list(failure, src=0)
        if failure[0]:
            raise ExportError(
                f"the model cannot be written to {self._folder}: {failure[0]}",
                fix="the training is saved in the checkpoints: make room or mend the folder, and start the job again",
            )

    @contextmanager
    def _on_main(self) -> Iterator[bool]:
        try:
            yield self._is_main and not self._failure
        except OSError as error:
            self._failure = f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, 'no errno')})"
            self._discard()

    def _discard(self) -> None:
        if self._weights is not None:
            with suppress(OSError):  # closing writes what is still buffered, to the disk that has just failed
                self._weights.close()
        for part in self._parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _gather(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _canonical(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _shared(module: nn.Module) -> list[list[str]]:
    """Names of one and the same tensor, as in tied embeddings."""
    names = defaultdict(list)
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        names[id(tensor)].append(_canonical(name))
    return [group for group in names.values() if len(group) > 1]
