"""Every test of the losses draws its weights from one seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Weights are drawn from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
