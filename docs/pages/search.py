"""The block on searches for the smallest student beside runs of all sizes to the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.pages.tables import made_by, table_block


def search_block(result: dict[str, Any]) -> str:
    """Answer of each search, the truth by runs to the end, and the price of the search."""
    runs = {(run["game"], run["seed"], run["way"]): run for run in result["runs"]}
    rows = [
        ["game", "seed", "answer", "share", "at least", "the truth", "its share", "no larger", "cost", "of learning"]
    ]
    for verdict in result["verdicts"]:
        searched, complete = (runs[verdict["game"], verdict["seed"], way]["found"] for way in ("search", "all"))
        rows.append(
            [
                verdict["game"],
                str(verdict["seed"]),
                _named(searched, verdict["chosen"]),
                *_shares(searched, verdict["chosen"]),
                _named(complete, verdict["smallest"]),
                _shares(complete, verdict["smallest"])[0],
                "yes" if verdict["no_larger"] else "no",
                f"{verdict['processor_ratio']:.2f}",
                f"{verdict['learning_ratio']:.2f}",
            ]
        )
    right, sizes = sum(verdict["no_larger"] for verdict in result["verdicts"]), len(complete["ladder"])
    text = (
        f"The answer of a search among {sizes} students, and the truth: the smallest that is good enough if all learn "
        f"to the end, each by {result['episodes']} final games. The answer is no larger in {right} of {len(rows) - 1} "
        "runs. Costs are processor seconds over those of a run with one student: of whole processes, "
        f"{result['processor_ratio']:.2f} in the median, and of learning without games to evaluate, "
        f"{result['learning_ratio']:.2f}."
    )
    return table_block(text, rows, made_by(result["environment"]))


def _named(found: Mapping[str, Any], name: str | None) -> str:
    return "none" if name is None else f"{name}, {_row(found, name)['parameters']:,} parameters"


def _shares(found: Mapping[str, Any], name: str | None) -> list[str]:
    return ["-", "-"] if name is None else [f"{_row(found, name)[key]:.2f}" for key in ("share", "share_at_least")]


def _row(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in found["ladder"] if row["name"] == name)
