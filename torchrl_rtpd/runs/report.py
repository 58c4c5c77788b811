"""Table of a run's results, with the networks on its Pareto front marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["pareto_front", "results_table"]

_COLUMNS = (
    ("network", "name", "{}"),
    ("parameters", "parameters", "{:,}"),
    ("of teacher's", "parameter_ratio", "{:.1%}"),
    ("score", "score_mean", "{:,.1f}"),
    ("+- std", "score_std", "{:,.1f}"),
    ("games", "episodes", "{}"),
    ("% of teacher", "percent_of_teacher", "{:.1f}"),
    ("normalised", "normalised", "{:.3f}"),
    ("Max %", "max_percent", "{:.1f}"),
    ("Mean %", "mean_percent", "{:.1f}"),
    ("agreement", "agreement", "{:.3f}"),
    ("CPU ms", "latency_ms", "{:.2f}"),
    ("front", "front", "{}"),
)


def results_table(results: Mapping[str, Any]) -> str:
    """A run's ``results.json`` as a Markdown table, one row a network: teacher, students by score, random player.

    With several students those on the :func:`pareto_front` are marked.

    Args:
        results: the content of ``results.json``. A column that would be empty is left out.
    """
    teacher, *students = results["networks"]
    if all(student.get("score_mean") is not None for student in students):
        students = sorted(students, key=lambda student: -student["score_mean"])
    front = pareto_front(results["networks"]) if len(students) > 1 else set()
    networks = [
        {**network, "front": "*" if network["name"] in front else ("" if front else None)}
        for network in (teacher, *students)
    ]
    columns = [column for column in _COLUMNS if any(network.get(column[1]) is not None for network in networks)]
    rows = [[title for title, _, _ in columns]]
    for network in networks:
        rows.append(["-" if network.get(key) is None else text.format(network[key]) for _, key, text in columns])
    if "random_score" in results:
        cells = {"name": "random player", "score_mean": f"{results['random_score']:,.1f}"}
        rows.append([cells.get(key, "") for _, key, _ in columns])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def pareto_front(networks: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the networks that no other beats.

    One network beats another if it is as small, as fast and scores as high, and is better in one of the three.

    Args:
        networks: entries of ``results.json``, with ``parameters``, ``latency_ms`` and ``score_mean``. Where one of them
            lacks a time or a score, the front is empty.

    Examples:
        >>> sizes = {"teacher": (100, 9.0), "small": (10, 5.0), "useless": (20, 4.0)}
        >>> sorted(pareto_front([
        ...     {"name": name, "parameters": size, "latency_ms": 1.0, "score_mean": score}
        ...     for name, (size, score) in sizes.items()
        ... ]))
        ['small', 'teacher']
    """
    if any(network.get("score_mean") is None or network.get("latency_ms") is None for network in networks):
        return set()
    costs = {
        network["name"]: (network["parameters"], network["latency_ms"], -network["score_mean"]) for network in networks
    }
    return {
        name
        for name, own in costs.items()
        if not any(
            other != own and all(theirs <= mine for theirs, mine in zip(other, own, strict=True))
            for other in costs.values()
        )
    }
