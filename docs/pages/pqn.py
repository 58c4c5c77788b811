"""The block on teachers with and without a replay, on a CPU, from the study ``pqn_cpu``."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from docs.pages.tables import made_by, spread, table_block

NAMES = {"dqn": "DQN, quick", "pqn": "PQN, pqn_quick"}


def pqn_block(results: Path) -> str:
    """Scores and costs of each game and teacher, over the seeds."""
    runs = read_runs(results / "pqn_cpu" / "runs.csv")
    rows = [["game", "teacher", "seeds", "steps", "updates", "seconds", "processor's", "teacher's score", "net17's"]]
    rows[0] += ["of teacher", "random"]
    for (game, row), networks in runs.items():
        teachers, students = networks["teacher"], networks["net17"]
        shares = [float(line["normalised"]) for line in students if line["normalised"]]
        rows.append(
            [
                game,
                NAMES[row],
                str(len(teachers)),
                f"{float(teachers[0]['steps']):,.0f}",
                f"{float(teachers[0]['updates']):,.0f}",
                over_seeds(teachers, "training_seconds"),
                over_seeds(teachers, "cpu_seconds"),
                over_seeds(teachers, "final_score"),
                over_seeds(students, "final_score"),
                ", ".join(f"{share:.2f}" for share in shares) or "-",
                over_seeds(teachers, "random_score"),
            ]
        )
    first = next(iter(runs.values()))["teacher"][0]
    text = (
        "Mean and standard deviation over seeds of the last weights' scores; the runs of a seed side by side, one on "
        "each core. The share of its teacher is each seed's, 0 being a random player."
    )
    return table_block(text, rows, made_by(first))


def read_runs(path: Path) -> dict[tuple[str, str], dict[str, list[dict[str, str]]]]:
    """Lines of a study's ``runs.csv`` by game and row, and then by network."""
    found: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            found[line["game"], line["row"]][line["network"]].append(line)
    return dict(found)


def over_seeds(lines: list[dict[str, str]], column: str) -> str:
    """Mean and standard deviation of a column over the seeds."""
    return spread([float(line[column]) for line in lines], "{:,.0f}")
