"""The percentages of the papers, and ours beside them.

``results/published.csv`` holds Tables 1 and 2 of Sun & Fazli 2019 (https://arxiv.org/abs/1912.12630), with the column
they quote from Rusu et al. 2015 (https://arxiv.org/abs/1511.06295). Ours come from the metrics of published runs.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path

from docs.pages.study_data import Study, load
from docs.pages.tables import markdown
from torchrl_rtpd.evaluation.comparison import paper_percentages
from torchrl_rtpd.runs.metrics import read_metrics

RUSU = {"net1": 108.3, "net2": 101.7, "net3": 83.9}  # their compression table: geometric means over 10 games, % of DQN
Row = list[str]


def published_block(results: Path) -> str:
    """The percentages of the papers and ours."""
    study = load(results / "classic")
    table = [["student", "loss", "of", "Max, %", "Mean, %", "Mean, normalised"]]
    table += papers_rows(results / "published.csv")
    table += study_rows(study, {"rtpd": "forward_kl", "reverse_kl": "reverse_kl"})
    table += example_rows(results / "quick")
    return "\n".join(
        [
            "Medians over games, ours over games and seeds. Max and Mean are the paper's, in per cent of the teacher; "
            "Rusu's is one percentage. Ours are of other games and far shorter runs: this says how far numbers lie "
            "apart, not who is better.",
            "",
            markdown(table),
            "",
        ]
    )


def papers_rows(path: Path) -> list[Row]:
    """Medians over the games of each of the paper's students, and Rusu's."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [
        [f"Rusu et al., two phases, {network}", "forward_kl", "10 games, geometric mean", f"{percent:.1f}", "-", "-"]
        for network, percent in RUSU.items()
    ]
    for loss, imitation, network in dict.fromkeys((row["loss"], row["imitation"], row["network"]) for row in lines):
        own = [row for row in lines if (row["loss"], row["imitation"], row["network"]) == (loss, imitation, network)]
        medians = [
            f"{statistics.median(float(row[key]) for row in own):.1f}" for key in ("max_percent", "mean_percent")
        ]
        name = f"Sun & Fazli, {network}" + ("" if imitation == "true" else ", no imitation")
        rows.append([name, loss, f"{len(own)} games, one run each", *medians, "-"])
    return rows


def study_rows(study: Study, losses: dict[str, str]) -> list[Row]:
    """Medians over games and seeds of rows of a study, by the loss they use."""
    rows = []
    for row, loss in losses.items():
        for network in study.students(row) if row in study.rows else ():
            found = []
            for game in study.games:
                for seed in study.seeds(row, game):
                    curves = [study.curves[row, game, seed, name]["score"] for name in (network, "teacher")]
                    found.append(paper_percentages(*curves, study.level(game, seed)[0]))
            rows.append(
                [f"{study.name}, {network}", loss, f"{' and '.join(study.games)}, {len(found)} runs", *_medians(found)]
            )
    return rows


def example_rows(folder: Path) -> list[Row]:
    """The same of the students of the main example's runs in a folder."""
    found: dict[str, list[dict[str, float | None]]] = {}
    game = ""
    for path in sorted(folder.glob("*/results.json")):
        results = json.loads(path.read_text())
        game, metrics = results["game"], read_metrics(path.parent / "metrics.csv")
        curves = {
            network["name"]: [score for score in metrics[f"{network['name']}/score"] if not math.isnan(score)]
            for network in results["networks"]
        }
        for name, scores in curves.items():
            if name != "teacher":
                percentages = paper_percentages(scores, curves["teacher"], results["random_score"])
                found.setdefault(name, []).append(percentages)
    return [
        [f"{folder.name}, {name}", "forward_kl", f"{game}, {len(own)} runs", *_medians(own)]
        for name, own in found.items()
    ]


def _medians(found: list[dict[str, float | None]]) -> list[str]:
    texts = []
    for key, digits in (("max_percent", 1), ("mean_percent", 1), ("mean_normalised", 2)):
        values = [one[key] for one in found]
        known = [value for value in values if value is not None]
        texts.append(f"{statistics.median(known):.{digits}f}" if len(known) == len(values) else "-")
    return texts
