"""Timing of alternatives that take turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

__all__ = ["median_ratio", "parsed_options", "take_turns"]


def parsed_options(
    description: str | None, numbers: Mapping[str, int], *, game: str | None = None
) -> argparse.Namespace:
    """What the command line says: ``--out``, whole numbers with these defaults, and ``--game`` if it has a default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    if game is not None:
        parser.add_argument("--game", default=game)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    repetitions: int,
    *,
    warmup: int = 3,
    in_a_row: int = 1,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds of each call, turn by turn.

    Args:
        calls: what to time, by name; the order changes from turn to turn, so that none always goes first.
        repetitions: turns kept.
        warmup: turns before them that are not.
        in_a_row: calls in one turn, of which the median time is kept: the first ones find cold caches.
        before: called before every call, not timed.

    Returns:
        ``repetitions`` times by name.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repetitions + warmup):
        names = list(calls)[turn % len(calls) :] + list(calls)[: turn % len(calls)]
        for name in names:
            taken = [_milliseconds(calls[name], before) for _ in range(in_a_row)]
            if turn >= warmup:
                times[name].append(statistics.median(taken))
    return times


def _milliseconds(call: Callable[[], object], before: Callable[[], object]) -> float:
    before()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def median_ratio(first: list[float], second: list[float]) -> float:
    """Median over turns of the first time over the second."""
    return statistics.median(one / other for one, other in zip(first, second, strict=True))
