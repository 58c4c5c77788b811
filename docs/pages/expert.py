"""Runs of whole length: what a student of any size costs and gives, a table a game, beside a human.

``results/human.csv`` holds scores of a random player and of a human after null-op starts, from Wang et al. 2016
(https://arxiv.org/abs/1511.06581). Ours come from the study ``atari_expert``.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable
from pathlib import Path

from docs.pages.front import GAMES
from docs.pages.study_data import Study, label, load
from docs.pages.tables import markdown, with_interval
from torchrl_rtpd.evaluation.comparison import interquartile_mean
from torchrl_rtpd.functional.scores import normalised_score

STUDY = "atari_expert"
COLUMNS = (
    "network",
    "of the teacher's parameters",
    "int8 file, kB",
    "int8, ms",
    "scores",
    "of a human",
    "of the teacher",
    "agreement",
    "own agreement",
    "regret",
    "own regret",
)


def expert_block(results: Path) -> str:
    """A table for each game."""
    study, people = load(results / STUDY), human_scores(results / "human.csv")
    parts = [(_heading(study, game), "", _table(study, game, people[game]), "") for game in study.games]
    return "\n".join(line for part in parts for line in part)


def human_scores(path: Path) -> dict[str, tuple[float, float]]:
    """Scores of a random player and of a human, by game."""
    with path.open(newline="") as file:
        return {line["game"]: (float(line["random"]), float(line["human"])) for line in csv.DictReader(file)}


def of_a_human(score: float, people: tuple[float, float]) -> float:
    """A score on the scale on which a random player is 0 and a human 1."""
    found = normalised_score(score, *people)
    assert found is not None, "a human is better than a random player"
    return found


def _heading(study: Study, game: str) -> str:
    runs = [key for key in study.runs if key[:2] == ("rtpd", game)]
    seeds = sorted({seed for _, _, seed, _ in runs})
    steps, updates = ({f"{float(study.runs[key][count]):,.0f}" for key in runs} for count in ("steps", "updates"))
    games = {study.runs[key]["episodes"] for key in runs}
    return (
        f"**{GAMES[game]}**: {', '.join(sorted(steps))} agent steps and {', '.join(sorted(updates))} updates a run, "
        f"seeds {', '.join(map(str, seeds))}; the last weights on {', '.join(sorted(games))} games."
    )


def _table(study: Study, game: str, people: tuple[float, float]) -> str:
    every = [(study.measure, "teacher"), *((row, network) for row in study.rows for network in study.students(row))]
    names = [name for name in every if study.seeds(name[0], game)]
    return markdown([COLUMNS, *(_row(study, game, *name, people) for name in names)])


def _row(study: Study, game: str, row: str, network: str, people: tuple[float, float]) -> list[str]:
    lines = [study.runs[row, game, seed, network] for seed in study.seeds(row, game)]
    scores = [float(line["final_score"]) for line in lines]
    shares = study.normalised(row, network, [game])
    return [
        "teacher" if network == "teacher" else label(study, row, network),
        _mean((line["parameter_ratio"] for line in lines), "{:.1%}"),
        _mean((line["file_bytes_int8"] for line in lines), "{:,.0f}", divisor=1_000),
        _mean((line["latency_int8_ms"] for line in lines), "{:.3f}"),
        ", ".join(f"{score:,.1f}" for score in scores),
        with_interval(interquartile_mean, [[of_a_human(score, people) for score in scores]]),
        "1" if network == "teacher" else with_interval(interquartile_mean, shares),
        *(
            "-" if network == "teacher" else _mean((line[key] for line in lines), "{:.2f}")
            for key in ("final_agreement", "final_own_agreement", "final_regret", "final_own_regret")
        ),
    ]


def _mean(texts: Iterable[str], form: str, divisor: float = 1.0) -> str:
    """Mean of numbers as a file holds them; a dash where a run has none, as one without a teacher has no agreement."""
    found = [float(text) / divisor for text in texts if text]
    return form.format(statistics.fmean(found)) if found else "-"
