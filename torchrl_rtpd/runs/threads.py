"""Number of threads for a run on processors that others use too."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import NamedTuple

from torchrl_rtpd.functional.checks import lies_within

__all__ = ["FreeProcessors", "all_processors", "free_processors"]

_STAT = Path("/proc/stat")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class FreeProcessors(NamedTuple):
    """Processors of a process.

    Attributes:
        all: number of those that it may use.
        busy: how many of them others kept busy while it was looked; 0 where the system does not tell. Programs of lower
            priority than the usual (``nice``) count if this process has one as well.
    """

    all: int
    busy: float

    @property
    def threads(self) -> int:
        """Number of threads that have a processor for themselves, at least one.

        A thread that shares its processor makes all others wait for it at the end of each parallel loop, where they
        spin meanwhile. Beside programs of low priority (``nice``) the spinning keeps the processors.
        """
        return max(1, round(self.all - self.busy))


def free_processors(seconds: float = 0.3) -> FreeProcessors:
    """Count the processors that this process may use, and look for a moment how busy others keep them.

    Args:
        seconds: how long to look. Default: 0.3, thirty ticks of Linux's clock for each processor.

    Returns:
        Their number by affinity and by the limit of a Linux control group, and how many are busy.

    Raises:
        ValueError: a time that is not positive.

    Examples:
        >>> found = free_processors(0.1)
        >>> 1 <= found.threads <= found.all
        True
    """
    if not lies_within(seconds, "(0, 60]"):
        raise ValueError(f"seconds must lie in (0, 60]: got {seconds!r}.")
    allowed = _allowed()
    before, own_before = _ticks(allowed), time.process_time()
    time.sleep(seconds)
    after, own = _ticks(allowed), time.process_time() - own_before
    number = all_processors()
    spent = sum(after.values()) - sum(before.values())
    if not spent:
        return FreeProcessors(number, 0.0)
    share = (spent - (after["idle"] - before["idle"])) / spent
    beyond = len(allowed) - number  # those that others may have, since the limit keeps us from them anyway
    return FreeProcessors(number, max(0.0, len(allowed) * share - own / seconds - beyond))


def all_processors() -> int:
    """Return the number of processors that this process may use, by affinity and by the limit of its control group."""
    return min(len(_allowed()), _limit())


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _limit() -> int:
    """Processors that a control group allows, rounded up."""
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # none, or "max"
        return os.cpu_count() or 1


def _ticks(processors: set[int]) -> dict[str, int]:
    """Ticks of some processors since the system began: idle or at a priority below this process's, and all others."""
    lowered = os.nice(0) > 0  # then others at low priority compete; which of them, the system does not tell
    found = {"idle": 0, "busy": 0}
    try:
        lines = _STAT.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        name, *ticks = line.split()
        if name.removeprefix("cpu").isdigit() and int(name.removeprefix("cpu")) in processors:
            user, nice, system, idle, waiting, *rest = map(int, ticks[:8])  # what follows is counted in user and nice
            found["idle"] += idle + waiting + (0 if lowered else nice)
            found["busy"] += user + system + sum(rest) + (nice if lowered else 0)
    return found
