"""Blocks on runs of the main example and of the scripts that add a student to a stock trainer."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from docs.pages.people import of_a_human
from docs.pages.tables import made_by, markdown, table_block, with_interval
from torchrl_rtpd.evaluation.comparison import probability_of_improvement

Run = dict[str, Any]
"""The content of a ``results.json``."""


def load_runs(study: Path) -> list[Run]:
    """The ``results.json`` of every run of a study, by seed."""
    runs = [json.loads(path.read_text()) for path in sorted(study.glob("*/results.json"))]
    return sorted(runs, key=lambda run: run["seed"])


def entries(runs: list[Run], name: str) -> list[tuple[Run, dict[str, Any]]]:
    """Each run with what it says of a network."""
    return [(run, network) for run in runs for network in run["networks"] if network["name"] == name]


def errors_above_random(run: Run, network: dict[str, Any]) -> float:
    """Distance of a network's mean score from the random player's, in standard errors of the difference."""
    error = (network["score_standard_error"] ** 2 + run["random_standard_error"] ** 2) ** 0.5
    return (network["score_mean"] - run["random_score"]) / error if error else float("inf")


def seed_rows(runs: list[Run]) -> list[list[str]]:
    """One row a network and seed; the favourite action's agreement and regret where they were measured."""
    titles = ["seed", "network", "parameters", "score", "std", "of a human", "normalised", "agreement"]
    later = {"favourite action": "favourite", "regret": "regret"}  # older runs have none
    later = {title: key for title, key in later.items() if all(key in each for run in runs for each in run["networks"])}
    rows = [[*titles, *later, "above random", "seconds"]]
    for run in runs:
        for network in run["networks"]:
            human = of_a_human(network["score_mean"], run["random_score"], run["game"])
            rows.append(
                [
                    str(run["seed"]),
                    network["name"],
                    f"{network['parameter_ratio']:.1%}",
                    f"{network['score_mean']:,.0f}",
                    f"{network['score_std']:,.0f}",
                    *("-" if share is None else f"{share:.2f}" for share in (human, network["normalised"])),
                    f"{network['agreement']:.2f}",
                    *(f"{network[key]:.2f}" for key in later.values()),
                    f"{errors_above_random(run, network):.1f} SE",
                    f"{run['seconds']:.0f}",
                ]
            )
    return rows


def summary_rows(runs: list[Run]) -> list[list[str]]:
    """One row a network: over the seeds."""
    rows = [
        [
            "network",
            "median score",
            "median normalised",
            "worst",
            "best",
            "seeds at 0.90 or more",
            "fewest SE above random",
        ]
    ]
    for name in [network["name"] for network in runs[0]["networks"]]:
        found = entries(runs, name)
        shares = [network["normalised"] for _, network in found if network["normalised"] is not None]
        rows.append(
            [
                name,
                f"{statistics.median(network['score_mean'] for _, network in found):,.0f}",
                f"{statistics.median(shares):.2f}",
                f"{min(shares):.2f}",
                f"{max(shares):.2f}",
                f"{sum(share >= 0.9 for share in shares)} of {len(found)}",
                f"{min(errors_above_random(run, network) for run, network in found):.1f}",
            ]
        )
    return rows


def runs_block(study: Path) -> str:
    """The block of a study of which every run is kept whole."""
    runs = load_runs(study)
    first = runs[0]
    environment = first["environment"]
    randoms = ", ".join(f"{run['random_score']:,.0f}" for run in runs)
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    commits = ", ".join(sorted({str(run["environment"]["commit"])[:10] for run in runs}))
    seconds = [run["seconds"] for run in runs]
    return "\n".join(
        [
            f"Game {first['game']}, {first['steps']:,} agent steps and {first['updates']:,} updates a run, seeds "
            f"{', '.join(str(run['seed']) for run in runs)}. Each network is the one that the run "
            f"kept, played again on {first['networks'][0]['episodes']} games; the random "
            f"player scored {randoms}. Runs took {min(seconds):.0f} to {max(seconds):.0f} s.",
            "",
            markdown(summary_rows(runs)),
            "",
            markdown(seed_rows(runs)),
            "",
            f"Hardware: {environment['cpu']}. {versions}. Commit {commits}. Command of the first run: "
            f"`{environment['command']}`.",
            "",
        ]
    )


def precision_block(results: Path) -> str:
    """The block that compares the runs in the two precisions."""
    return precision_table(*(load_runs(results / name) for name in ("float32", "bfloat16")))


def precision_table(float32: list[Run], bfloat16: list[Run]) -> str:
    """The comparison of runs in the two precisions, network by network."""
    titles = ["network", "score, float32", "score, bfloat16", "bfloat16 scores higher, probability"]
    rows = [[*titles, "agreement, float32", "agreement, bfloat16"]]
    for place, network in enumerate(float32[0]["networks"]):
        scores, agreements = (
            [[run["networks"][place][measure] for run in runs] for runs in (float32, bfloat16)]
            for measure in ("score_mean", "agreement")
        )
        rows.append(
            [
                network["name"],
                *(f"{statistics.median(found):,.0f}" for found in scores),
                with_interval(probability_of_improvement, [scores[1]], [scores[0]]),
                *("-" if network["name"] == "teacher" else f"{statistics.median(found):.2f}" for found in agreements),
            ]
        )
    text = (
        f"Medians of {len(float32)} runs in float32 and {len(bfloat16)} in bfloat16, and the probability that a run "
        "in bfloat16 scores higher than one in float32, with its 95 % interval; 0.5 is no difference."
    )
    origin = made_by(bfloat16[0]["environment"], "Command of the first in bfloat16")
    return table_block(text, rows, origin)


def drop_in_runs(results: Path) -> dict[str, Run]:
    """Results of the ``drop_in_*.py`` scripts by ``<script>-seed<S>``."""
    return {path.parent.name: json.loads(path.read_text()) for path in results.glob("drop_in/*/results.json")}


def drop_in_block(results: Path) -> str:
    """The block of the ``drop_in_*.py`` scripts."""
    runs = drop_in_runs(results)
    rows = [["script", "seed", "task", "teacher", "student", "random", "normalised", "student's size", "seconds"]]
    for name, run in sorted(runs.items()):
        teacher, student = run["networks"]
        scores = [f"{network['score_mean']:,.0f} +- {network['score_std']:,.0f}" for network in (teacher, student)]
        share = "-" if student["normalised"] is None else f"{student['normalised']:.2f}"
        size = f"{student['parameter_ratio']:.1%}"
        seed, random = str(run["seed"]), f"{run['random_score']:,.0f}"
        rows.append([name.split("-")[0], seed, run["game"], *scores, random, share, size, f"{run['seconds']:.0f}"])
    first = runs[min(runs)]
    environment, games = first["environment"], first["networks"][0]["episodes"]
    text = (
        f"The last networks of each run, on {games} games without exploration: mean and standard deviation. "
        "Seconds are those of training; some runs shared the machine."
    )
    return table_block(text, rows, made_by(environment, "Command of the first"))


def recurrent_block(results: Path) -> str:
    """The block of ``examples/recurrent_student.py``, a row a seed and network."""
    runs = [json.loads(path.read_text()) for path in sorted(results.glob("recurrent/*/results.json"))]
    rows = [["seed", "network", "parameters", "score", "normalised", "seconds"]]
    for run in runs:
        for network in run["networks"]:
            score, share = f"{network['score_mean']:,.0f} +- {network['score_std']:,.0f}", network["normalised"]
            cells = [network["name"], f"{network['parameters']:,}", score, "-" if share is None else f"{share:.2f}"]
            rows.append([str(run["seed"]), *cells, f"{run['seconds']:.0f}"])
    games = runs[0]["networks"][0]["episodes"]
    text = (
        f"The last networks of each run, on {games} games without exploration: mean and standard deviation. Seconds "
        "are those of the whole training, the same for its networks; some runs shared the machine."
    )
    return table_block(text, rows, made_by(runs[0]["environment"], "Command of the first"))
