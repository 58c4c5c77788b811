"""Markdown tables and the line on where their numbers come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torchrl_rtpd.evaluation.comparison import bootstrap_interval


def markdown(rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table whose first row is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * (lines[0].count("|") - 1))
    return "\n".join(lines)


def with_interval(statistic: Callable[..., float], *methods: list[list[float]]) -> str:
    """A statistic and its 95 % interval, which single runs do not have."""
    if all(len(game) == 1 for method in methods for game in method):
        return f"{statistic(*methods):.2f}"
    low, high = bootstrap_interval(statistic, *methods)
    return f"{statistic(*methods):.2f} [{low:.2f}, {high:.2f}]"


def made_by(environment: dict[str, Any], label: str = "Command") -> str:
    """The line on where a page's numbers come from."""
    commit, command = environment["commit"][:10], environment["command"]
    return f"Hardware: {environment['cpu']}. Commit {commit}. {label}: `{command}`."


def table_page(source: str, text: str, rows: Iterable[Iterable[str]], origin: str) -> str:
    """A page of a sentence or two, one table and where its numbers come from."""
    head = f"<!-- written by docs/make_results.py from docs/results/{source} -->"
    return "\n".join([head, "", text, "", markdown(rows), "", origin, ""])
