"""Table of a run's results, with the networks on its Pareto front marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["latency_runtime", "pareto_front", "results_table"]

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
    ("favourite action", "favourite", "{:.3f}"),
    ("regret", "regret", "{:.3f}"),
    ("own agreement", "own_agreement", "{:.3f}"),
    ("own favourite", "own_favourite", "{:.3f}"),
    ("CPU ms", "latency_ms", "{:.2f}"),
    ("int8 ms", "latency_int8_ms", "{:.3f}"),
    ("int8 agreement", "agreement_int8", "{:.3f}"),
    ("int8 regret", "regret_int8", "{:.4f}"),
    ("front", "front", "{}"),
)


def results_table(results: Mapping[str, Any]) -> str:
    """A run's ``results.json`` as a Markdown table, one row a network: teacher, students by score, random player.

    With several students those on the :func:`pareto_front` are marked. The time of a decision says its runtime in its
    title, or in each row where runtimes differ. Agreement and regret of ``int8`` are against the network's own floats,
    all others against the teacher: in states of the teacher's games, and ``own`` in those of the network's own. The
    favourite action's is the agreement of a network that always takes the action that the teacher takes most often.

    Args:
        results: the content of ``results.json``. A column that would be empty is left out.
    """
    teacher, *students = results["networks"]
    if all(student.get("score_mean") is not None for student in students):
        students = sorted(students, key=lambda student: -student["score_mean"])
    front = pareto_front(results["networks"]) if len(students) > 1 else set()
    runtime = latency_runtime(results["networks"])
    networks = [
        {**network, "front": "*" if network["name"] in front else ("" if front else None)}
        for network in (teacher, *students)
    ]
    columns = [column for column in _COLUMNS if any(network.get(column[1]) is not None for network in networks)]
    rows = [[f"{title}, {runtime}" if key == "latency_ms" and runtime else title for title, key, _ in columns]]
    for network in networks:
        rows.append([_cell(network, key, text, runtime) for _, key, text in columns])
    if "random_score" in results:
        cells = {"name": "random player", "score_mean": f"{results['random_score']:,.1f}"}
        rows.append([cells.get(key, "") for _, key, _ in columns])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def _cell(network: Mapping[str, Any], key: str, text: str, runtime: str | None) -> str:
    if network.get(key) is None:
        return "-"
    own = network.get("latency_runtime") if key == "latency_ms" else None
    if own is None:
        return text.format(network[key])
    return f"{network[key]:.3f}" + ("" if runtime else f" ({own})")


def latency_runtime(networks: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the runtime that timed all networks; None where there are several, or results do not tell.

    Args:
        networks: entries of ``results.json``. Those of earlier versions have no ``latency_runtime``: eager PyTorch.

    Examples:
        >>> latency_runtime([{"latency_runtime": "onnxruntime"}] * 2), latency_runtime([{"latency_ms": 1.0}])
        ('onnxruntime', None)
    """
    found = {network.get("latency_runtime") for network in networks}
    return found.pop() if len(found) == 1 else None


def pareto_front(networks: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the networks that no other beats.

    One network beats another if it is as small, as fast and scores as high, and is better in one of the three. Times
    are those of floats. Those of different runtimes do not compare: neither of two such networks beats the other.

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
    runtimes = {network["name"]: network.get("latency_runtime") for network in networks}
    return {
        name
        for name, own in costs.items()
        if not any(
            runtimes[other] == runtimes[name]
            and theirs != own
            and all(their <= mine for their, mine in zip(theirs, own, strict=True))
            for other, theirs in costs.items()
        )
    }
