"""Runs of whole length: what a student of any size costs and gives, a table a game, beside a human.

Numbers come from the study ``atari_expert``, references from :mod:`docs.pages.people`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from docs.pages.front import GAMES
from docs.pages.people import of_a_human
from docs.pages.study_data import Study, label, load
from docs.pages.tables import markdown, with_interval
from torchrl_rtpd.evaluation.comparison import interquartile_mean

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
    study = load(results / STUDY)
    parts = [(_heading(study, game), "", _table(study, game), "") for game in study.games]
    return "\n".join(line for part in parts for line in part)


def _heading(study: Study, game: str) -> str:
    runs = [key for key in study.runs if key[:2] == ("rtpd", game)]
    seeds = sorted({seed for _, _, seed, _ in runs})
    steps, updates = ({f"{float(study.runs[key][count]):,.0f}" for key in runs} for count in ("steps", "updates"))
    games = {study.runs[key]["episodes"] for key in runs}
    return (
        f"**{GAMES[game]}**: {', '.join(sorted(steps))} agent steps and {', '.join(sorted(updates))} updates a run, "
        f"seeds {', '.join(map(str, seeds))}; the last weights on {', '.join(sorted(games))} games."
    )


def _table(study: Study, game: str) -> str:
    every = [(study.measure, "teacher"), *((row, network) for row in study.rows for network in study.students(row))]
    names = [name for name in every if study.seeds(name[0], game)]
    return markdown([COLUMNS, *(_row(study, game, *name) for name in names)])


def _row(study: Study, game: str, row: str, network: str) -> list[str]:
    lines = [study.runs[row, game, seed, network] for seed in study.seeds(row, game)]
    scores = [float(line["final_score"]) for line in lines]
    shares, people = study.normalised(row, network, [game]), [of_a_human(score, game) for score in scores]
    return [
        "teacher" if network == "teacher" else label(study, row, network),
        _mean((line["parameter_ratio"] for line in lines), "{:.1%}"),
        _mean((line["file_bytes_int8"] for line in lines), "{:,.0f}", divisor=1_000),
        _mean((line["latency_int8_ms"] for line in lines), "{:.3f}"),
        ", ".join(f"{score:,.1f}" for score in scores),
        "-" if None in people else with_interval(interquartile_mean, [people]),
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
