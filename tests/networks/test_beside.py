"""Calls in a thread beside the caller's."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch

from torchrl_rtpd.networks.beside import Beside
from torchrl_rtpd.networks.pixels import pixels_scaled_once, scaled


def test_calls_run_in_one_other_thread_in_the_order_in_which_they_were_given() -> None:
    beside, gate, order = Beside(), threading.Event(), []

    def call(number: int) -> int:
        gate.wait(10)
        order.append(number)
        return threading.get_ident()

    results = [beside.call(call, number) for number in range(5)]
    assert not order
    gate.set()
    threads = {result.result(10) for result in results}
    assert order == [0, 1, 2, 3, 4]
    assert len(threads) == 1 and threading.get_ident() not in threads


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
            assert beside.call(torch.get_num_threads).result() == number == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_a_call_does_not_inherit_that_no_gradient_is_wanted() -> None:
    """Modes of autograd are those of a thread."""
    with torch.no_grad():
        assert Beside().call(torch.is_grad_enabled).result()


def test_pixels_that_the_caller_has_scaled_are_shared_in_both_directions() -> None:
    beside, (first, second) = Beside(), torch.zeros(2, 1, 4, 2, 2, dtype=torch.uint8)
    with pixels_scaled_once():
        before = scaled(first)
        theirs = beside.call(lambda: (scaled(first), scaled(second))).result()
        assert theirs[0] is before and scaled(second) is theirs[1]
    assert beside.call(scaled, first).result() is not before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda beside: pickle.loads(pickle.dumps(beside))])
def test_a_copy_has_a_thread_of_its_own(copied) -> None:
    beside = Beside()
    ident = beside.call(threading.get_ident).result()
    assert copied(beside).call(threading.get_ident).result() != ident
