"""Figures of the studies, from what their CSV files say."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docs.pages.study_data import Study, label, temperature_of, times
from docs.pages.tables import interval
from torchrl_rtpd.evaluation.comparison import interquartile_mean

WIDTH = 6.5  # inches


def figure(width: float, height: float, panels: int) -> tuple[Any, list[Any]]:
    """A figure of panels one above the other, narrow enough for a small screen."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    return drawn, list(drawn.subplots(panels, 1, squeeze=False)[:, 0])


def band(curves: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Interquartile mean, lowest and highest of the curves at each of their points."""
    columns = [list(column) for column in zip(*curves, strict=True)]
    return [interquartile_mean([column]) for column in columns], [min(c) for c in columns], [max(c) for c in columns]


def plot_curves(study: Study, names: list[tuple[str, str]], path: Path) -> None:
    """Normalised scores of networks of rows against steps: interquartile means over seeds, which the shade spans."""
    drawn, panels = figure(WIDTH, 3.4 * len(study.games), len(study.games))
    for axes, game in zip(panels, study.games, strict=True):
        for index, (row, network) in enumerate(names):
            if not study.seeds(row, game):
                continue
            curves = []
            for seed in study.seeds(row, game):
                random_score, teacher_score = study.level(game, seed)
                curve = study.curves[row, game, seed, network]
                curves.append([(score - random_score) / (teacher_score - random_score) for score in curve["score"]])
            steps = [count / 1000 for count in study.curves[row, game, study.seeds(row, game)[0], network]["steps"]]
            middle, low, high = band(curves)
            axes.fill_between(steps, low, high, color=f"C{index}", alpha=0.12)
            axes.plot(steps, middle, color=f"C{index}", label=f"{row}: {network}", linewidth=1.8)
        axes.axhline(0.95, color="grey", linestyle=":")
        axes.set(title=game, ylabel="normalised score", ylim=(-0.1, 1.4))
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    drawn.supxlabel("thousand agent steps, an earlier phase included", fontsize="medium")
    drawn.savefig(path, dpi=110)


def plot_intervals(study: Study, path: Path) -> None:
    """Final normalised scores over all games: interquartile means with their intervals, and every run as a dot."""
    names = [(row, network) for row in study.rows for network in study.students(row)]
    drawn, (axes,) = figure(WIDTH, 0.8 + 0.32 * len(names), 1)
    for height, (row, network) in enumerate(reversed(names)):
        scores = study.normalised(row, network)
        low, high = interval(interquartile_mean, scores)
        for index, game in enumerate(scores):
            axes.plot(
                game, [height + 0.12 * (index - 0.5)] * len(game), ".", color=f"C{index}", alpha=0.5, markersize=5
            )
        axes.plot([low, high], [height] * 2, color="black", linewidth=2)
        axes.plot(interquartile_mean(scores), height, "o", color="black", markersize=5)
    axes.set_yticks(range(len(names)), [label(study, *name) for name in reversed(names)])
    axes.axvline(1.0, color="grey", linestyle=":")
    axes.set(xlabel=f"normalised score of the last weights; dots: {', '.join(study.games)}")
    axes.grid(alpha=0.3, axis="x")
    drawn.savefig(path, dpi=110)


def plot_times(study: Study, path: Path) -> None:
    """Median steps until 95 % of the final teacher is held, hatched where no run got there."""
    every = [(row, network) for row in study.rows for network in study.students(row)]
    drawn, panels = figure(WIDTH, (0.8 + 0.3 * len(every)) * len(study.games), len(study.games))
    for axes, game in zip(panels, study.games, strict=True):
        names = [(row, network) for row, network in every if study.seeds(row, game)]
        for height, (row, network) in enumerate(reversed(names)):
            steps = [count / 1000 for count in times(study, row, game, network, "steps")]
            look = {"alpha": 0.6} if any(study.reached(row, game, network)) else {"alpha": 0.2, "hatch": "///"}
            axes.barh(height, statistics.median(steps), color="C0", **look)
            axes.plot(steps, [height] * len(steps), ".", color="black", alpha=0.6)
        axes.set_yticks(range(len(names)), [label(study, *name) for name in reversed(names)])
        axes.set_title(game)
        axes.grid(alpha=0.3, axis="x")
    drawn.supxlabel("thousand agent steps until 95 % is held (hatched: never, the whole run)", fontsize="medium")
    drawn.savefig(path, dpi=110)


def plot_temperatures(study: Study, path: Path) -> None:
    """Final normalised scores against the temperature, on both networks and on the teacher alone."""
    drawn, panels = figure(WIDTH, 3.4 * len(study.games), len(study.games))
    for axes, game in zip(panels, study.games, strict=True):
        for color, side in enumerate(("both", "teacher")):
            swept = {row: own for row in study.rows if (own := temperature_of(row)) is not None and own[1] == side}
            found = {own[0]: study.normalised(row, study.students(row)[0], [game])[0] for row, own in swept.items()}
            found = {temperature: scores for temperature, scores in found.items() if scores}
            fixed = sorted(float(temperature) for temperature in found if temperature != "auto")
            by_number = {float(temperature): scores for temperature, scores in found.items() if temperature != "auto"}
            middle = [interquartile_mean([by_number[number]]) for number in fixed]
            axes.plot(fixed, middle, "o-", color=f"C{color}", label=f"on {side}")
            for number in fixed:
                axes.plot([number] * len(by_number[number]), by_number[number], ".", color=f"C{color}", alpha=0.5)
            if "auto" in found:
                middle_of_auto = interquartile_mean([found["auto"]])
                axes.axhline(middle_of_auto, color=f"C{color}", linestyle="--", label=f"auto on {side}")
        axes.set(title=game, xscale="log", xlabel="temperature", ylabel="normalised score")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    drawn.savefig(path, dpi=110)
