"""Global random streams are put back as they were, seeded within or not."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from torchrl_rtpd.envs.streams import streams_kept


def drawn() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


@pytest.mark.parametrize("seed", [None, 3, 2**32 + 3])
def test_draws_within_change_nothing_after(seed: int | None) -> None:
    with streams_kept():
        expected = drawn()
    with streams_kept(seed):
        inside = drawn()
    assert drawn() == expected
    assert (inside == expected) is (seed is None)


def test_an_error_within_changes_nothing_after() -> None:
    with streams_kept():
        expected = drawn()
    with pytest.raises(KeyError), streams_kept(seed=0):
        drawn()
        raise KeyError
    assert drawn() == expected


def test_one_seed_gives_one_stream() -> None:
    with streams_kept(seed=5):
        first = drawn()
    drawn()
    with streams_kept(seed=5):
        assert drawn() == first


def test_a_function_keeps_them_at_every_call() -> None:
    kept = streams_kept(seed=1)(drawn)
    with streams_kept():
        expected = drawn()
    assert kept() == kept()
    assert drawn() == expected
