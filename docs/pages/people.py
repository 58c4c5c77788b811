"""Scores of a human, for a scale on which a game's results can be understood.

``results/human.csv`` holds those of Wang et al. 2016 (https://arxiv.org/abs/1511.06581): after null-op starts, in games
of up to 30 minutes. Zero on the scale is a run's own random player. The random players of the literature act every
six frames, and one with a frame skip of four scores more than they do in some games.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from torchrl_rtpd.functional.scores import normalised_score

HUMAN = Path(__file__).resolve().parents[1] / "results" / "human.csv"


@cache
def humans(path: Path = HUMAN) -> dict[str, float]:
    """Score of a human by game."""
    with path.open(newline="") as file:
        return {line["game"]: float(line["human"]) for line in csv.DictReader(file)}


def of_a_human(score: float, random_score: float, game: str) -> float | None:
    """A score on the scale on which a run's random player is 0 and a human 1; None for a game without a reference."""
    return None if game not in humans() else normalised_score(score, random_score, humans()[game])
