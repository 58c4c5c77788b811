"""A thread beside the caller's, in which networks run while it goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torchrl.modules import recurrent_mode, set_recurrent_mode

from torchrl_rtpd.networks.pixels import pixels_scaled_once, pixels_scaled_so_far

__all__ = ["Beside", "Call", "results_of"]


class Beside:
    """A thread beside the caller's, in which calls begin in the order in which they were given.

    PyTorch lets other threads of Python run while it computes, so two threads that compute keep two processors busy,
    and neither waits for the other at the end of each parallel loop. A call computes with as many threads of its own
    (:func:`torch.get_num_threads`) as the caller has, and under its autocast and TorchRL's recurrent mode, so that it
    gives what it would give there, to the last bit, if it draws no random numbers. It shares the pixels that the caller
    has scaled (see :mod:`torchrl_rtpd.networks.pixels`).

    The thread starts with the first call. A copy, or an instance in another process, sent or forked, starts its own.

    Examples:
        >>> beside = Beside()
        >>> call = beside.call(torch.sum, torch.ones(3))
        >>> call.result()
        tensor(3.)
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_executor": None, "_process": None}

    def call(self, function: Callable[..., Any], *args: Any) -> Call:
        """Call a function in the thread, after all calls before."""
        if self._executor is None or self._process != os.getpid():  # threads stay behind in a fork
            self._executor, self._process = ThreadPoolExecutor(1, "torchrl_rtpd"), os.getpid()
        state = (torch.get_num_threads(), bool(recurrent_mode()), _autocast())
        work = partial(_called, state, pixels_scaled_so_far(), function, *args)
        return Call(self._executor.submit(work), work)


class Call:
    """A call that runs beside, or here, where its result is asked for before it has begun."""

    def __init__(self, future: Future, work: Callable[[], Any]) -> None:
        self._future = future
        self._work = work

    def take(self) -> None:
        """Run the call here and now, unless it has begun."""
        if not self._future.cancel():
            return
        self._future = Future()
        try:
            self._future.set_result(self._work())
        except BaseException as error:
            self._future.set_exception(error)

    def result(self) -> Any:
        """Return what the call returned, or raise what it raised."""
        self.take()
        return self._future.result()


def results_of(calls: Sequence[Call]) -> list[Any]:
    """Return the results of calls, once all are over; those that are late are run here, the last one first.

    Raises:
        Exception: what the first of them raised that raised anything.
    """
    for call in reversed(calls):
        call.take()
    for call in calls:
        call._future.exception()  # waits
    return [call.result() for call in calls]


def _autocast() -> tuple[bool, torch.dtype]:
    """State of this thread's autocast on a CPU, which other threads do not have."""
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


def _called(
    state: tuple[int, bool, tuple[bool, torch.dtype]], pixels: Any, function: Callable[..., Any], *args: Any
) -> Any:
    threads, recurrent, autocast = state
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with pixels_scaled_once(pixels), ExitStack() as contexts:
        if bool(recurrent_mode()) != recurrent:
            contexts.enter_context(set_recurrent_mode(recurrent))
        if _autocast() != autocast:
            contexts.enter_context(torch.autocast("cpu", autocast[1], autocast[0]))
        return function(*args)
