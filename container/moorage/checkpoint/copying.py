"""The copy of a rank's tensors that a save needs, made beside the training.

Nothing but the next step of an optimizer changes parameters and optimizer state, so they are copied while training goes
forward and backward, and waited for only before that step (`settle`). Whether anything else changed them is looked at:
torch counts the changes of a tensor, except those made through `.data`, which show in a sample of its values.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moorage.errors import CheckpointError

CHANGED = "was changed while a checkpoint copied it"

_PIECE = 8 << 20
"""Bytes that one thread copies before the other may help."""

_SAMPLE = 64
"""Values of a tensor that are compared, at equal distances."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A tensor and the room for its copy, of the same shape, on the CPU. name: for messages."""

    name: str
    source: Tensor
    copy: Tensor

    @property
    def is_plain(self) -> bool:
        """Whether the copy is the same bytes in the same order."""
        source = self.source
        odd = type(source) is not Tensor or source.is_conj() or source.is_neg()
        return not odd and source.stride() == self.copy.stride() and source.device.type in ("cpu", "cuda")


class Copying:
    """One copy. Tensors that are not `steady` may change once it is made, the others once `settle` was called by the
    thread that is to change them. Meanwhile another thread calls `finish`.

    waited: seconds that `settle` took of the training. changed: a tensor that could not be copied as it was, or empty.
    """

    def __init__(self, pairs: Iterable[Pair], steady: frozenset[str]) -> None:
        at_once: list[Pair] = []
        self._later: list[Pair] = []
        for pair in pairs:
            (self._later if pair.name in steady and pair.is_plain else at_once).append(pair)
        self.waited, self.changed = 0.0, ""
        self._settled, self._judged = False, False
        self._lock = threading.Lock()
        self._copied = threading.Event()
        self._events = _copy(at_once)
        self._versions = [pair.source._version for pair in self._later]
        self._samples = _Samples(self._later)
        pieces = [piece for pair in self._later if not pair.source.is_cuda for piece in _pieces(pair)]
        self._pieces, self._left = deque(pieces), len(pieces)
        if not pieces:
            self._copied.set()
        self._behind = _copy_behind([pair for pair in self._later if pair.source.is_cuda], self._samples)

    def settle(self) -> None:
        """Let this thread change what was copied: on a GPU that waits for the copy, here it is helped to its end."""
        if self._settled:
            return
        began = time.monotonic()
        self._help()
        self._copied.wait()
        for event in self._behind:
            torch.cuda.current_stream(event.device).wait_event(event)
        self._judge()
        self._settled = True
        self.waited = time.monotonic() - began

    def finish(self) -> None:
        """Return when all is copied. Raises CheckpointError when a tensor changed meanwhile."""
        self._help()
        self._copied.wait()
        for event in (*self._events, *self._behind):
            event.synchronize()
        self._judge()
        self.changed = self.changed or self._samples.changed()
        # The tensors may go, once the program has no more use for them.
        self._later, self._samples = [], _Samples([])
        if self.changed:
            raise CheckpointError(
                f"{self.changed} {CHANGED}",
                why="by something else than a step of a tracked optimizer, between two steps",
                fix="change weights in a hook of the optimizer's step, or set staging to pause",
            )

    def _help(self) -> None:
        while True:
            try:
                piece = self._pieces.popleft()
            except IndexError:
                return
            ctypes.memmove(*piece)
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._copied.set()

    def _judge(self) -> None:
        """Once, before the step that may change everything: which tensor changed since the copy began."""
        with self._lock:
            if not self._judged:
                self._judged = True
                pairs = zip(self._later, self._versions, strict=True)
                self.changed = next((pair.name for pair, before in pairs if pair.source._version != before), "")


class _Samples:
    """Some values of each tensor as they were when the copy began."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        groups: dict[tuple[torch.device, torch.dtype], list[Pair]] = {}
        for pair in pairs:
            if pair.source.numel():
                groups.setdefault((pair.source.device, pair.source.dtype), []).append(pair)
        self._groups = list(groups.values())
        self._taken = [_sample([pair.source for pair in group]) for group in self._groups]
        self._fetched = list(self._taken)

    def fetch(self, device: torch.device) -> None:
        """Queue their way from a GPU on the current stream."""
        for place, taken in enumerate(self._taken):
            if taken.device == device:
                self._fetched[place] = torch.empty_like(taken, device="cpu", pin_memory=True)
                self._fetched[place].copy_(taken, non_blocking=True)

    def changed(self) -> str:
        """The name of a tensor whose copy has other values, or empty. Bits are compared: nan equals itself."""
        for group, before in zip(self._groups, self._fetched, strict=True):
            if torch.equal(before, _sample([pair.copy for pair in group])):
                continue
            copies = [_sample([pair.copy]) for pair in group]
            for pair, was, copy in zip(group, before.split([len(copy) for copy in copies]), copies, strict=True):
                if not torch.equal(was, copy):
                    return pair.name
        return ""


def _sample(tensors: Sequence[Tensor]) -> Tensor:
    """Bytes of some values of dense tensors of one type."""
    parts = []
    for tensor in tensors:
        size = tensor.numel()
        parts.append(torch.as_strided(tensor, (min(_SAMPLE, size),), (max(1, size // _SAMPLE),)))
    return torch.cat(parts).view(torch.uint8)


def _pieces(pair: Pair) -> list[tuple[int, int, int]]:
    """Where to, where from, and how many bytes."""
    size, to, source = pair.copy.nbytes, pair.copy.data_ptr(), pair.source.data_ptr()
    return [(to + start, source + start, min(_PIECE, size - start)) for start in range(0, size, _PIECE)]


def _copy(pairs: Sequence[Pair]) -> list[torch.cuda.Event]:
    """Copy, or on a GPU queue the copy before what the training does next; the events that tell when it is done."""
    if pairs:
        with torch.no_grad():
            torch._foreach_copy_([pair.copy for pair in pairs], [pair.source for pair in pairs], non_blocking=True)
    return [torch.cuda.current_stream(device).record_event() for device in _gpus(pairs)]


def _copy_behind(pairs: Sequence[Pair], samples: _Samples) -> list[torch.cuda.Event]:
    """Queue the copies on streams of their own, after what the training has queued so far."""
    events = []
    for device in _gpus(pairs):
        stream = torch.cuda.Stream(device)
        stream.wait_event(torch.cuda.current_stream(device).record_event())
        with torch.cuda.stream(stream):
            samples.fetch(device)
            _copy([pair for pair in pairs if pair.source.device == device])
            events.append(stream.record_event())
    return events


def _gpus(pairs: Sequence[Pair]) -> set[torch.device]:
    return {pair.source.device for pair in pairs if pair.source.is_cuda}
