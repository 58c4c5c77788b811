"""Calls of a network or a loss at which the numbers that it is given are looked at."""

from __future__ import annotations

import torch

__all__ = ["Rhythm"]


class Rhythm:
    """Calls at which numbers are looked at, which waits for the device: the 1st, 2nd, 4th, 8th and so on.

    Never inside ``torch.compile`` nor while a CUDA graph is captured.

    Examples:
        >>> rhythm = Rhythm()
        >>> [call for call in range(1, 10) if rhythm.due()]
        [1, 2, 4, 8]
    """

    def __init__(self) -> None:
        self._calls = 0

    def due(self, waits: bool = True) -> bool:
        """Count a call, and return True if numbers are due to be looked at.

        Args:
            waits: False where looking costs next to nothing, as at data on a CPU: then every call is due.
        """
        if torch.compiler.is_compiling():
            return False
        if not waits:
            return True
        self._calls += 1
        if self._calls & (self._calls - 1):
            return False
        return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
