"""Parts of the tests of code for a GPU: where it runs, and what would make the host wait for a device."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]
"""A CPU, and a GPU where there is one."""

_READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select", "aten.unique")
_INDEXED = ("aten.index.", "aten.index_put")


class HostReads(TorchDispatchMode):
    """Collects the calls that would make the host wait for a CUDA device, though they run on a CPU.

    They are those whose result depends on values: ``item()``, ``bool()`` of a tensor, ``nonzero``, boolean indices.

    Attributes:
        found: name of each call, and the function that made it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        reads = name.startswith(_READS)
        if name.startswith(_INDEXED):
            reads = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if reads:
            callers = [frame.name for frame in traceback.extract_stack() if "torch/" not in frame.filename]
            self.found.append((name, callers[-2]))
        return func(*args, **(kwargs or {}))
