"""A thread beside the caller's, in which networks run while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from torchrl_rtpd.networks.pixels import pixels_scaled_once, pixels_scaled_so_far

__all__ = ["Beside"]


class Beside:
    """A thread beside the caller's, in which calls run one after the other in the order in which they were given.

    PyTorch lets other threads of Python run while it computes, so two threads that compute keep two processors busy,
    and neither waits for the other at the end of each parallel loop. A call computes with as many threads of its own
    (:func:`torch.get_num_threads`) as the caller has, so that it gives what it would give there, to the last bit, if it
    draws no random numbers. It shares the pixels that the caller has scaled (see :mod:`torchrl_rtpd.networks.pixels`).

    The thread starts with the first call. A copy, or an instance that was sent to another process, starts its own.

    Examples:
        >>> beside = Beside()
        >>> result = beside.call(torch.sum, torch.ones(3))
        >>> result.result()
        tensor(3.)
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_executor": None}

    def call(self, function: Callable[..., Any], *args: Any) -> Future:
        """Call a function in the thread, after all calls before; the result says what it returned or raised."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "torchrl_rtpd")
        work = partial(_called, torch.get_num_threads(), pixels_scaled_so_far(), function, *args)
        return self._executor.submit(work)


def _called(threads: int, pixels: Any, function: Callable[..., Any], *args: Any) -> Any:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with pixels_scaled_once(pixels):
        return function(*args)
