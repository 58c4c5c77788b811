"""A neighbour for benchmarks: one more process that wants a processor, as on a machine that others use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["neighbour"]

COMPUTE = """import os
os.nice({niceness})
while os.getppid() == {parent}:
    for _ in range(100_000): pass"""
"""Ends with its parent, so that a benchmark that is killed leaves no process behind."""


@contextmanager
def neighbour(niceness: int | None) -> Iterator[None]:
    """A process that computes without end in one thread meanwhile.

    Args:
        niceness: by how much the process is nicer than this one: 0 has the same priority, 10 a lower one. ``None``
            begins no process.
    """
    if niceness is None:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", COMPUTE.format(niceness=niceness, parent=os.getpid())])
    try:
        yield
    finally:
        process.kill()
        process.wait()
