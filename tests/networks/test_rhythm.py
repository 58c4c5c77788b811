"""Numbers are looked at less and less often."""

from __future__ import annotations

import copy

import torch

from torchrl_rtpd.networks.rhythm import Rhythm


def test_calls_are_due_at_powers_of_two() -> None:
    rhythm = Rhythm()
    assert [call for call in range(1, 20) if rhythm.due()] == [1, 2, 4, 8, 16]


def test_every_call_is_due_where_nothing_waits() -> None:
    """Calls in between do not count for those that wait: these are the 1st, 2nd, 3rd and 4th."""
    rhythm = Rhythm()
    assert all(rhythm.due(waits=False) for _ in range(5))
    assert [rhythm.due() for _ in range(4)] == [True, True, False, True]
    assert not torch.compile(lambda: rhythm.due(waits=False), backend="eager")()


def test_a_copy_counts_for_itself() -> None:
    """After two calls the copy is at its third, which is not due; the original is not moved by it."""
    rhythm = Rhythm()
    assert rhythm.due() and rhythm.due()
    other = copy.deepcopy(rhythm)
    assert not other.due() and other.due()
    assert not rhythm.due() and rhythm.due()
