"""Inputs that every language can make again, and outputs compared. Needs NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["COUNT", "C_COUNT", "compare", "make_inputs"]

COUNT = 16
C_COUNT = 4  # of them in a C source


def make_inputs(ports: Sequence[Mapping[str, Any]], count: int = COUNT) -> list[np.ndarray]:
    """Return ``count`` observations for each input.

    Numbers are drawn by the 32-bit xorshift generator of Marsaglia 2003 (https://doi.org/10.18637/jss.v008.i14), the
    first observation's with seed 1, the next one's with seed 2: all of the first input's, then all of the second's.
    Bytes are the highest eight bits, floats lie in [-1, 1), booleans are the highest bit.

    Args:
        ports: inputs of a card, each with ``shape`` and ``dtype``.
        count: number of observations.

    Examples:
        >>> make_inputs([{"shape": [3], "dtype": "uint8"}], 2)[0].tolist()
        [[0, 4, 157], [0, 8, 41]]
    """
    state = np.arange(1, count + 1, dtype=np.uint32)
    inputs = []
    for port in ports:
        drawn = np.empty((int(np.prod(port["shape"])), count), np.uint32)
        for row in drawn:
            state ^= state << np.uint32(13)
            state ^= state >> np.uint32(17)
            state ^= state << np.uint32(5)
            row[:] = state
        inputs.append(_as_type(drawn.T.reshape(count, *port["shape"]), port["dtype"]))
    return inputs


def _as_type(drawn: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bool":
        return drawn >= 2**31
    if dtype.startswith("float"):
        return ((drawn >> np.uint32(8)) / 2**23 - 1).astype(dtype)
    return (drawn >> np.uint32(24)).astype(dtype)


def compare(wanted: Sequence[Any], found: Sequence[np.ndarray], names: Sequence[str], tolerance: float) -> list[str]:
    """Return what differs, a sentence each.

    Args:
        wanted: the card's outputs, each ``[N, ...]``.
        found: those of the file.
        names: the outputs' names.
        tolerance: largest difference, in spreads between the smallest and the largest number of an output.
    """
    problems = []
    for name, own, other in zip(names, wanted, found, strict=True):
        own = np.asarray(own, np.float64)
        if own.shape != other.shape:
            problems.append(f"{name} has shape {list(other.shape)} instead of {list(own.shape)}")
        elif other.dtype.kind == "f":  # of values that are nearly equal either may be the largest
            worst = float(np.abs(own - other).max())
            if not worst <= tolerance * max(float(np.ptp(own)), 1e-6):
                problems.append(f"{name} differs by up to {worst:.3g}")
    return problems
