"""Write a safetensors file one tensor at a time, so that a model larger than memory fits through.

The library's own writer wants all tensors at once. The format is eight bytes with the length of a JSON header,
little-endian, the header, and the tensors back to back (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """names: the tensors in the order in which they are written. header: what comes before them. size: bytes in all."""

    names: tuple[str, ...]
    header: bytes
    size: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """The layout of a file that holds `tensors`. Raises KeyError naming one of a type the format lacks."""
        for name, tensor in tensors.items():
            if tensor.dtype not in DTYPES or tensor.layout is not torch.strided:
                raise KeyError(f"{name} of {tensor.dtype}, {tensor.layout}")
        # Wide numbers first: so each tensor begins at a multiple of its width, and can be mapped into memory.
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            tensor = tensors[name]
            end = offset + tensor.numel() * tensor.element_size()
            shape = list(tensor.shape)
            entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        return cls(names=tuple(names), header=header, size=len(header) + offset)


def write_tensor(file: IO[bytes], tensor: Tensor) -> None:
    """Append the bytes of `tensor`, from wherever it is and however it is strided. Raises OSError."""
    plain = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    if plain.numel():
        file.write(plain.reshape(-1).view(torch.uint8).numpy().data)
