"""Figures of a run: curves over time, and score against size."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_rtpd.runs.report import latency_runtime, pareto_front

__all__ = ["plot_curves", "plot_front"]


def plot_front(results: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Score against size of all networks, with standard errors; those on the :func:`pareto_front` are joined.

    Each network's label says the time of a decision, in floats and in 8-bit integers if known; the title says by what.
    Students that a search dropped on the way are hollow, at their score of then.

    Args:
        results: the content of ``results.json``, with scores.
        path: file to write, PNG or SVG by its ending.

    Returns:
        The path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = _figure((7, 4.5))
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.subplots()
    networks = sorted(results["networks"], key=lambda network: network["parameters"])
    front, runtime = pareto_front(networks), latency_runtime(networks)
    for network in networks:
        where = (network["parameters"], network["score_mean"])
        colour = "tab:blue" if network["name"] in front else "tab:grey"
        axes.errorbar(*where, yerr=network["score_standard_error"], fmt="o", color=colour, capsize=3)
        largest = network is networks[-1] and len(networks) > 1  # its label would run out of the axes
        beside = {"xytext": (-5, 5), "ha": "right"} if largest else {"xytext": (5, 5)}
        axes.annotate(_timed(network, runtime), where, textcoords="offset points", fontsize=8, **beside)
    dropped = [row for row in results.get("search", {}).get("ladder", ()) if row.get("dropped_at_steps")]
    if dropped:
        places = [[row[key] for row in dropped] for key in ("parameters", "score_mean")]
        axes.scatter(*places, facecolors="none", edgecolors="tab:grey", label="dropped on the way")
    joined = [network for network in networks if network["name"] in front]
    axes.plot([network["parameters"] for network in joined], [network["score_mean"] for network in joined], alpha=0.4)
    axes.axhline(results["random_score"], linestyle=":", color="grey", label="random player")
    title = f"{results['game']}; ms on a CPU by {runtime}" if runtime else results["game"]
    axes.set(xscale="log", xlabel="parameters", ylabel="raw score, whole games", title=title)
    wide = networks[-1]["parameters"] > 3_000 * networks[0]["parameters"]  # more labels would touch each other
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.15)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    return Path(path)


def _timed(network: Mapping[str, Any], runtime: str | None) -> str:
    """Name of a network and its time, with the runtime where that is not everybody's."""
    own, integers = network.get("latency_runtime"), network.get("latency_int8_ms")
    time = f"{network['latency_ms']:.3f} ms" if own else f"{network['latency_ms']:.2f} ms"
    where = f" by {own}" if own and runtime is None else ""
    return f"{network['name']}, {time}{where}" + ("" if integers is None else f", int8 {integers:.3f}")


def plot_curves(
    metrics: Mapping[str, Sequence[float]],
    networks: Sequence[str],
    path: str | os.PathLike,
    *,
    title: str,
    random_score: float | None = None,
) -> Path:
    """Learning curves in one figure: scores, agreement and KL to the teacher, dormant units, against agent steps.

    Scores of the games that ended while training are drawn in grey, where metrics have them.

    Args:
        metrics: columns, as :func:`read_metrics` gives them.
        networks: names, the teacher first.
        path: file to write, PNG or SVG by its ending.
        title: heading of the figure.
        random_score: raw score of the random player, drawn as a line.

    Returns:
        The path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = _figure((11, 7))
    figure.suptitle(title)
    panels = (
        ("score", "raw score, whole games"),
        ("agreement", "greedy agreement with the teacher"),
        ("kl_to_teacher", "KL(teacher || student), nats"),
        ("dormant", "share of dormant units"),
    )
    named: dict[str, Any] = {}
    for axes, (metric, label) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        if metric == "score":
            _draw(axes, metrics, "training_score", color="lightgrey", width=1.0)
        for index, name in enumerate(networks):
            _draw(axes, metrics, f"{name}/{metric}", color=f"C{index}", width=2.5 if index == 0 else 1.5)
        if metric == "score" and random_score is not None:
            axes.axhline(random_score, color="grey", linestyle=":", label="random player")
        axes.set(xlabel="agent steps", ylabel=label)
        axes.grid(alpha=0.3)
        lines, names = axes.get_legend_handles_labels()
        named.update(zip(names, lines, strict=True))
    if named:  # one legend below: the search for a free place inside takes seconds where there are many points
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=6)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return Path(path)


def _draw(axes: Any, metrics: Mapping[str, Sequence[float]], column: str, *, color: str, width: float) -> None:
    points = [
        (steps, value)
        for steps, value in zip(metrics["steps"], metrics.get(column, ()), strict=False)
        if not math.isnan(value)
    ]
    if points:
        axes.plot(
            *zip(*points, strict=True),
            color=color,
            linewidth=width,
            marker=".",
            label=column.split("/")[0].replace("_", " "),
        )


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the figure needs matplotlib: pip install 'torchrl_rtpd[plots]'.") from error
    return Figure(figsize=size, layout="constrained")
