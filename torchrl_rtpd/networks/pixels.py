"""Scale each tensor of pixels once, even if several networks read it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["pixels_scaled_once", "pixels_scaled_so_far", "scaled", "share_scaled_pixels"]

_MOST = 8  # scaled tensors that are kept: states and next states of several views


_Scaled = dict[tuple[int, int, int], tuple[Tensor, Tensor]]  # by pixels, their version and stream


class _Shared(threading.local):
    """Scaled pixels that networks share, with their sources; a thread that collects has its own."""

    by_id: _Scaled | None = None
    stream: int = 0  # the current one when sharing began


_SHARED = _Shared()


def share_scaled_pixels() -> None:
    """Let the networks of this thread scale each tensor of pixels once, until a :func:`pixels_scaled_once` ends.

    For a trainer whose teacher learns from a minibatch before its students do, with code between them that is not ours.
    """
    _SHARED.by_id, _SHARED.stream = {}, _current_stream()


def pixels_scaled_so_far() -> _Scaled | None:
    """Return what the networks of this thread share, for another one to go on with; None where they share nothing."""
    return _SHARED.by_id


@contextmanager
def pixels_scaled_once(so_far: _Scaled | None = None) -> Iterator[None]:
    """Let the networks of this thread scale each tensor of pixels once for all of them, inside the context.

    Pixels that are changed in place meanwhile are scaled again. CUDA streams that are forked inside share the pixels
    scaled before.

    Args:
        so_far: what another thread shares (:func:`pixels_scaled_so_far`), to be shared by both until the context ends.
            None is this thread's.
    """
    outside = _SHARED.by_id if so_far is not None else None
    if so_far is not None:
        _SHARED.by_id, _SHARED.stream = so_far, _current_stream()
    elif _SHARED.by_id is None:
        share_scaled_pixels()
    try:
        yield
    finally:
        _SHARED.by_id = outside


def _current_stream() -> int:
    return torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0


def scaled(pixels: Tensor) -> Tensor:
    """Return stacks ``[*B, C, H, W]`` in [0, 1] as ``[prod(B), C, H, W]`` float32 in channels-last memory."""
    shared = None if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() else _SHARED.by_id
    if shared is None or pixels.is_inference():
        return _scaled(pixels)
    stream = _current_stream() if pixels.is_cuda else _SHARED.stream
    for known in (_SHARED.stream, stream):
        found = shared.get((id(pixels), pixels._version, known))
        if found is not None:
            return found[1]
    values = _scaled(pixels)
    if len(shared) < _MOST:
        shared[id(pixels), pixels._version, stream] = (pixels, values)  # kept, so that no other tensor can have its id
    return values


def _scaled(pixels: Tensor) -> Tensor:
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    return flat.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)
