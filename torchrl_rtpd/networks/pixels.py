"""Scale each tensor of pixels once, even if several networks read it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["pixels_scaled_once", "scaled"]


class _Shared(threading.local):
    """Scaled pixels of :func:`pixels_scaled_once` with their sources; a thread that collects has its own."""

    by_id: dict[tuple[int, int], tuple[Tensor, Tensor]] | None = None  # by pixels and stream
    stream: int = 0  # the current one when the context was opened


_SHARED = _Shared()


@contextmanager
def pixels_scaled_once() -> Iterator[None]:
    """Let the networks of this thread scale each tensor of pixels once for all of them, inside the context.

    Warning: the pixels must not change meanwhile. Those of a minibatch do not while students learn from it. CUDA
    streams that are forked inside share the pixels scaled before.
    """
    _SHARED.by_id, _SHARED.stream = {}, _current_stream()
    try:
        yield
    finally:
        _SHARED.by_id = None


def _current_stream() -> int:
    return torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0


def scaled(pixels: Tensor) -> Tensor:
    """Return stacks ``[*B, C, H, W]`` in [0, 1] as ``[prod(B), C, H, W]`` float32 in channels-last memory."""
    shared = None if torch.compiler.is_compiling() else _SHARED.by_id
    stream = _current_stream() if shared is not None and pixels.is_cuda else _SHARED.stream
    if shared is not None:
        for known in (_SHARED.stream, stream):
            if (id(pixels), known) in shared:
                return shared[id(pixels), known][1]
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    scaled = flat.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)
    if shared is not None:
        shared[id(pixels), stream] = (pixels, scaled)  # kept, so that no other tensor can have its id
    return scaled
