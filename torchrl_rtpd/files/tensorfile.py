"""Tensors in a safetensors file, streamed: at most a few megabytes of them are copied at a time.

The library's own writer takes all tensors as bytes at once; a replay of a million transitions has seven gigabytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["read_tensor", "write_tensors"]

_CHUNK = 16 * 2**20  # bytes; large enough for full speed, small beside any network

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
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


def write_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike) -> tuple[int, str]:
    """Write tensors of any device.

    Args:
        tensors: by name; memory order is not kept.
        path: file to write. A crash leaves part of it.

    Returns:
        Size in bytes and SHA-256, hexadecimal, computed while writing.

    Raises:
        TypeError: a type that safetensors lacks, such as a complex one.

    Examples:
        >>> import tempfile
        >>> from safetensors.torch import load_file
        >>> path = tempfile.mkdtemp() + "/numbers.safetensors"
        >>> size, digest = write_tensors({"a": torch.arange(3)}, path)
        >>> load_file(path)
        {'a': tensor([0, 1, 2])}
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(f"safetensors files hold {', '.join(_NAMES.values())}: got {tensor.dtype} for {name!r}.")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    # Hashing and writing both leave the interpreter, so that they run side by side.
    with Path(path).open("wb", buffering=0) as file, ThreadPoolExecutor(1) as hasher:
        for chunk in chain([memoryview(len(text).to_bytes(8, "little")), memoryview(text)], _chunks(tensors)):
            hashed = hasher.submit(digest.update, chunk)
            _write_all(file, chunk)
            hashed.result()
        size = file.tell()
    return size, digest.hexdigest()


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of all tensors, piece by piece."""
    for tensor in tensors.values():
        flat = tensor.detach().contiguous().view(-1)
        step = max(1, _CHUNK // tensor.element_size())
        for piece in flat.split(step) if len(flat) else ():
            yield memoryview(piece.cpu().view(torch.uint8).numpy())


def _write_all(file: Any, chunk: bytes | memoryview) -> None:
    """Write all of a chunk: an unbuffered file may take less than it is given."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def read_tensor(file: Any, name: str, *, copy: bool = True) -> Tensor:
    """Return one tensor of an open safetensors file.

    Args:
        file: an open file, from :func:`safetensors.safe_open`.
        name: name of the tensor.
        copy: copy it out of the file if True; otherwise it lies in the file, which is mapped into memory.

    Returns:
        The tensor, on the CPU.
    """
    tensor = file.get_tensor(name)
    return tensor.clone() if copy else tensor
