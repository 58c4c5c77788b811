"""Settings of the process that make a long run faster."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # the largest that glibc accepts


def keep_freed_memory() -> bool:
    """Let the C library keep memory that this process frees, up to 2 GiB, instead of returning it to the system.

    Every update frees megabytes of activations and gradients and takes as many again. By default glibc hands their
    pages back, and the system must find and clear new ones thousands of times an update, which on a CPU costs a good
    part of its time (see the results page). The setting is the whole process's; call it once, before training. Results
    do not change.

    Returns:
        True if it took; False where the C library is not glibc.

    Examples:
        >>> keep_freed_memory() in (True, False)
        True
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    taken = [mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)]
    return all(taken)
