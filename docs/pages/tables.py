"""Markdown tables, statistics with their intervals, and the line on where numbers come from."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from torchrl_rtpd.evaluation.comparison import bootstrap_interval

Scores = Sequence[Sequence[float]]
"""Results of a method, a list a game."""
_Frozen = tuple[tuple[float, ...], ...]


def markdown(rows: Iterable[Iterable[str]]) -> str:
    """Write a Markdown table whose first row is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * (lines[0].count("|") - 1))
    return "\n".join(lines)


def interval(statistic: Callable[..., float], *methods: Scores) -> tuple[float, float]:
    """The 95 % interval of a statistic; the same numbers are not drawn twice."""
    return _interval(statistic, tuple(tuple(tuple(game) for game in method) for method in methods))


@cache
def _interval(
    statistic: Callable[..., float], methods: tuple[tuple[tuple[float, ...], ...], ...]
) -> tuple[float, float]:
    return bootstrap_interval(statistic, *([list(game) for game in method] for method in methods))


def with_interval(statistic: Callable[..., float], *methods: Scores) -> str:
    """A statistic and its 95 % interval, which single runs do not have."""
    if all(len(game) == 1 for method in methods for game in method):
        return f"{statistic(*methods):.2f}"
    low, high = interval(statistic, *methods)
    return f"{statistic(*methods):.2f} [{low:.2f}, {high:.2f}]"


def spread(values: list[float], form: str) -> str:
    """Mean and standard deviation of one number a seed; a dash where no seed has it."""
    if not values:
        return "-"
    found = form.format(statistics.fmean(values))
    return f"{found} +- {form.format(statistics.stdev(values))}" if len(values) > 1 else found


def made_by(environment: dict[str, Any], label: str = "Command") -> str:
    """The line on where numbers come from."""
    commit, command = environment["commit"][:10], environment["command"]
    return f"Hardware: {environment['cpu']}. Commit {commit}. {label}: `{command}`."


def table_block(text: str, rows: Iterable[Iterable[str]], origin: str) -> str:
    """A sentence or two, one table and where its numbers come from."""
    return "\n".join([text, "", markdown(rows), "", origin, ""])
