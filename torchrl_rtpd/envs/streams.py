"""Global random streams that code of others draws from: environments, policies and libraries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["streams_kept"]


@contextmanager
def streams_kept(seed: int | None = None) -> Iterator[None]:
    """Put the global generators of torch, NumPy and Python back, after the context, as they were before it.

    What only watches a training must not draw from its streams: the teacher would learn other things.

    Args:
        seed: of all of them inside the context; None leaves them as they are.

    Examples:
        >>> before = torch.get_rng_state()
        >>> with streams_kept(seed=0):
        ...     first = torch.rand(2)
        >>> with streams_kept(seed=0):
        ...     torch.equal(torch.rand(2), first)
        True
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices):
        try:
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                if devices:
                    torch.cuda.manual_seed_all(seed)
                np.random.seed(seed % 2**32)
                random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
