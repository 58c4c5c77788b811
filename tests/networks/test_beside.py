"""Calls in a thread beside the caller's."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import time
from typing import Any

import pytest
import torch

from torchrl_rtpd.networks.beside import Beside, results_of
from torchrl_rtpd.networks.pixels import pixels_scaled_once, scaled


def in_thread(beside: Beside, function: Any) -> Any:
    """What a call returns that was not taken over by this thread."""
    done = threading.Event()
    call = beside.call(lambda: (function(), done.set())[0])
    assert done.wait(10)
    return call.result()


def test_calls_run_in_one_other_thread_in_the_order_in_which_they_were_given() -> None:
    beside, gate, order = Beside(), threading.Event(), []

    def call(number: int) -> int:
        gate.wait(10)
        order.append(number)
        return threading.get_ident()

    calls = [beside.call(call, number) for number in range(5)]
    assert not order
    gate.set()
    while len(order) < 5:
        time.sleep(0.001)
    threads = {call.result() for call in calls}
    assert order == [0, 1, 2, 3, 4]
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_a_call_that_has_not_begun_runs_where_its_result_is_asked_for() -> None:
    """So that nobody waits while there is work; once, whoever asks."""
    beside, gate, ran = Beside(), threading.Event(), []

    def call(number: int) -> int:
        ran.append(number)
        return threading.get_ident()

    busy = beside.call(gate.wait, 10)
    late = [beside.call(call, number) for number in range(3)]
    assert late[1].result() == late[1].result() == threading.get_ident()
    threading.Timer(0.2, gate.set).start()
    assert results_of([busy, *late]) == [True, *[threading.get_ident()] * 3]
    assert ran == [1, 2, 0]


def test_all_calls_are_over_before_the_first_error_of_them_is_raised() -> None:
    beside, over = Beside(), []
    wrong = [beside.call(torch.zeros(2).view, number) for number in (3, 5)]
    right = beside.call(lambda: time.sleep(0.1) or over.append(1))
    with pytest.raises(RuntimeError, match=r"shape '\[3\]' is invalid for input of size 2"):
        results_of([*wrong, right])
    assert over == [1]


def test_what_a_call_raises_is_raised_where_its_result_is_asked_for_and_later_calls_go_on() -> None:
    beside = Beside()
    wrong, right = beside.call(torch.zeros(2).view, 3), beside.call(torch.zeros, 2)
    with pytest.raises(RuntimeError, match="invalid for input of size 2"):
        wrong.result()
    assert right.result().shape == (2,)


def test_a_call_computes_with_as_many_threads_as_its_caller() -> None:
    beside, before = Beside(), torch.get_num_threads()
    try:
        for number in (1, 3, 2):
            torch.set_num_threads(number)
            assert in_thread(beside, torch.get_num_threads) == number == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_a_call_does_not_inherit_that_no_gradient_is_wanted() -> None:
    """Modes of autograd are those of a thread."""
    with torch.no_grad():
        assert in_thread(Beside(), torch.is_grad_enabled)


def test_pixels_that_the_caller_has_scaled_are_shared_in_both_directions() -> None:
    beside, (first, second) = Beside(), torch.zeros(2, 1, 4, 2, 2, dtype=torch.uint8)
    with pixels_scaled_once():
        before = scaled(first)
        theirs = in_thread(beside, lambda: (scaled(first), scaled(second)))
        assert theirs[0] is before and scaled(second) is theirs[1]
        assert beside.call(scaled, second).result() is theirs[1] and scaled(first) is before  # here or there
    assert beside.call(scaled, first).result() is not before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda beside: pickle.loads(pickle.dumps(beside))])
def test_a_copy_has_a_thread_of_its_own(copied) -> None:
    beside = Beside()
    ident = in_thread(beside, threading.get_ident)
    assert in_thread(copied(beside), threading.get_ident) not in (ident, threading.get_ident())


def test_a_call_runs_under_its_callers_autocast() -> None:
    """Autocast belongs to a thread; the next call has the state of its own moment."""
    beside, product = Beside(), torch.nn.Linear(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = beside.call(product, torch.ones(1, 2))
        assert beside.call(product, torch.ones(1, 2))._future.result().dtype == torch.bfloat16
    assert inside.result().dtype == torch.bfloat16
    assert beside.call(product, torch.ones(1, 2))._future.result().dtype == torch.float32


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_a_thread_of_its_own() -> None:
    """The one of before stays behind in the other process."""
    beside = Beside()
    beside.call(abs, -1).result()
    read, write = os.pipe()
    if not os.fork():
        os.write(write, str(beside.call(abs, -2)._future.result(timeout=20)).encode())
        os._exit(0)
    os.close(write)
    assert os.read(read, 10) == b"2"
    os.wait()
