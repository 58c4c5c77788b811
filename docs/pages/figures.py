"""Every figure of the pages, each drawn from files, and drawing them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from docs.pages import choosing, expert, front, gpu, studies
from torchrl_rtpd.runs.figures import plot_curves, plot_front
from torchrl_rtpd.runs.metrics import read_metrics

Draw = Callable[[Path, Path], object]
"""From ``docs/`` and the file to write."""

LARGEST_DIFFERENCE = 0.05  # of a colour between 0 and 1: another processor rounds the edges of lines differently


def _run_curves(run: str, docs: Path, path: Path) -> None:
    results = json.loads((docs / "results" / run / "results.json").read_text())
    plot_curves(
        read_metrics(docs / "results" / run / "metrics.csv"),
        [network["name"] for network in results["networks"]],
        path,
        title=f"{results['game']}, seed {results['seed']}",
        random_score=results["random_score"],
    )


def _run_front(run: str, docs: Path, path: Path) -> None:
    plot_front(json.loads((docs / "results" / run / "results.json").read_text()), path)


FIGURES: dict[str, Draw] = {
    "images/front.png": front.front_figure,
    "images/direction.png": choosing.direction_figure,
    "images/temperature.png": choosing.growth_figure,
    "results/quick/seed0/curves.png": partial(_run_curves, "quick/seed0"),
    "results/six_students/seed0/front.png": partial(_run_front, "six_students/seed0"),
    "results/search/front.png": partial(_run_front, "search"),
    "results/atari_expert/curves.png": expert.expert_figure,
    "results/atari_expert/intervals.png": expert.intervals_figure,
    "results/atari_expert/times.png": expert.times_figure,
    "results/gpu_pong/curves.png": gpu.pong_figure,
    **studies.FIGURES,
}
"""Functions that draw each figure, by its path under ``docs/``."""


def drawn(draw: Draw, docs: Path, path: Path) -> bool:
    """Draw a figure and say whether it differs from the one that is there, which stays where it does not."""
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / path.name
        draw(docs, new)
        if path.exists() and _alike(imread(new), imread(path)):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(new.read_bytes())
    return True


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and float(np.abs(one - other).max()) <= LARGEST_DIFFERENCE
