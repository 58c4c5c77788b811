"""Settings of the process that make a long run faster."""

from __future__ import annotations

import ctypes
import functools
import mmap
from pathlib import Path

__all__ = ["keep_freed_memory"]

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # the largest that glibc accepts
_LARGE_PAGES = 512 * 2**20  # bytes of the heap to be held in them: what networks and an update of them take
_LARGE_PAGE = 2 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library keep memory that this process frees, up to 2 GiB, and Linux hold the heap in large pages.

    Every update frees megabytes of activations and gradients and takes as many again. By default glibc hands their
    pages back, and the system must find and clear new ones thousands of times an update, which on a CPU costs a good
    part of its time (see the results page). Weights, gradients and what an optimiser remembers are read once an update,
    from more small pages than a processor knows by heart; of large ones, which Linux gives where it is asked
    (``madvise``), it knows all. The setting is the whole process's; call it before networks are built. A second call
    does nothing. Results do not change.

    Returns:
        True if freed memory is kept; False where the C library is not glibc.

    Examples:
        >>> keep_freed_memory() in (True, False)
        True
    """
    return _keep_freed_memory()


@functools.cache
def _keep_freed_memory() -> bool:
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, madvise = libc.mallopt, libc.madvise
    except (OSError, AttributeError):
        return False
    taken = [mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)]
    # The heap grows at once, in addresses and not in memory.
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    mallopt(_M_TOP_PAD, _LARGE_PAGES)
    libc.free(libc.malloc(ctypes.c_size_t(_LARGEST_MMAP_THRESHOLD - _LARGE_PAGE)))
    mallopt(_M_TOP_PAD, _LARGE_PAGE)
    begin, end = _heap()
    begin += -begin % _LARGE_PAGE
    if end > begin:
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)
    return all(taken)


def _heap() -> tuple[int, int]:
    """First and last address of the heap; none where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return 0, 0
    places = [line.split()[0].split("-") for line in lines if line.endswith("[heap]")]
    return (int(places[0][0], 16), int(places[-1][1], 16)) if places else (0, 0)
