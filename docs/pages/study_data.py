"""Scores and times of every row, game and seed of a study, from its CSV files.

Scores are normalised by the seed's own final teacher, the one that learned alone: 0 is a random player, 1 that teacher
with its last weights on games of its own. A network's result is that of its *last* weights, which no evaluation chose.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torchrl_rtpd.evaluation.comparison import COSTS, time_to_teacher
from torchrl_rtpd.functional.scores import normalised_score

TEACHER = "teacher_only"
TEACHER_ROWS = (TEACHER, "rtpd")  # rows whose teachers can be the measure, the same bit for bit
Curve = dict[str, list[float]]


@dataclass(frozen=True)
class Study:
    """The published runs of a study.

    Attributes:
        name: name of its folder.
        runs: the line of each network by row, game, seed and network; its numbers as text.
        curves: columns of its evaluations, likewise.
    """

    name: str
    runs: dict[tuple[str, str, int, str], dict[str, str]]
    curves: dict[tuple[str, str, int, str], Curve]

    @property
    def rows(self) -> list[str]:
        """Rows in the order of the study."""
        return list(dict.fromkeys(row for row, _, _, _ in self.runs))

    @property
    def games(self) -> list[str]:
        """Games in the order of the study."""
        return list(dict.fromkeys(game for _, game, _, _ in self.runs))

    def games_of(self, row: str) -> list[str]:
        """Games that a row has runs of."""
        return [game for game in self.games if self.seeds(row, game)]

    @property
    def measure(self) -> str:
        """The row whose teachers are the measure: the first with all seeds that rtpd has."""
        return next(row for row in TEACHER_ROWS if self._teachers("rtpd") <= self._teachers(row))

    def _teachers(self, row: str) -> set[tuple[str, int]]:
        return {(game, seed) for own, game, seed, network in self.runs if (own, network) == (row, "teacher")}

    def only(self, rows: Iterable[str]) -> Study:
        """The same with some of its rows."""
        kept = set(rows)
        return self._where(lambda row, game: row in kept)

    def of_games(self, *names: str) -> Study:
        """The same with some of its games."""
        return self._where(lambda row, game: game in names)

    def repeated(self) -> Study:
        """The same where a row has several seeds of a game: one run has no interval."""
        return self._where(lambda row, game: len(self.seeds(row, game)) > 1)

    def _where(self, kept: Callable[[str, str], bool]) -> Study:
        runs, curves = ({key: own for key, own in part.items() if kept(*key[:2])} for part in (self.runs, self.curves))
        return Study(self.name, runs, curves)

    def students(self, row: str) -> list[str]:
        """Networks of a row, the teacher left out unless it is alone."""
        names = list(dict.fromkeys(name for own, _, _, name in self.runs if own == row))
        return [name for name in names if name != "teacher"] or names

    def seeds(self, row: str, game: str, *others: str) -> list[int]:
        """Seeds of a game that a row has, that the other rows have too, and whose teacher is there."""
        rows = [{seed for own, where, seed, _ in self.runs if (own, where) == (name, game)} for name in (row, *others)]
        return sorted(seed for seed in set.intersection(*rows) if (self.measure, game, seed, "teacher") in self.runs)

    def finals(self, row: str, game: str, network: str) -> list[float]:
        """Raw scores of a network's last weights, in the order of the seeds."""
        return [float(self.runs[row, game, seed, network]["final_score"]) for seed in self.seeds(row, game)]

    def level(self, game: str, seed: int) -> tuple[float, float]:
        """Raw scores of the random player and of the final teacher of a seed."""
        run = self.runs[self.measure, game, seed, "teacher"]
        return float(run["random_score"]), float(run["final_score"])

    def normalised(self, row: str, network: str, games: Iterable[str] | None = None) -> list[list[float]]:
        """Final scores of a network, a list a game, of games that the row has runs of."""
        found = []
        for game in self.games_of(row) if games is None else games:
            scores = []
            for seed, final in zip(self.seeds(row, game), self.finals(row, game, network), strict=True):
                score = normalised_score(final, *self.level(game, seed))
                assert score is not None, f"the teacher of {game}, seed {seed}, is no better than a random player"
                scores.append(score)
            found.append(scores)
        return found

    def pair(self, row: str, other: str, network: str) -> tuple[list[list[float]], list[list[float]]]:
        """Final scores of a network in two rows, in the games that both have."""
        games = [game for game in self.games_of(row) if game in self.games_of(other)]
        return self.normalised(row, network, games), self.normalised(other, network, games)

    def time(self, row: str, game: str, seed: int, network: str) -> dict[str, float] | None:
        """Costs until the network first held 95 % of the final teacher; None if it never did."""
        random_score, teacher_score = self.level(game, seed)
        curve = self.curves[row, game, seed, network]
        columns = {**curve, f"{network}/score": curve["score"]}
        return time_to_teacher(columns, network, teacher_score=teacher_score, random_score=random_score)

    def reached(self, row: str, game: str, network: str) -> list[bool]:
        """List, a seed each, if a network ever held 95 % of the final teacher."""
        return [self.time(row, game, seed, network) is not None for seed in self.seeds(row, game)]

    def replayed(self, game: str, seed: int) -> list[float]:
        """Scores of a teacher's last weights in the evaluations of two_stage, which begins from them."""
        return self.curves["two_stage", game, seed, "teacher"]["score"]

    def until_held(self, row: str, game: str, seed: int, network: str) -> dict[str, float]:
        """Costs likewise; those of the whole run if it never did."""
        return self.time(row, game, seed, network) or self.spent(row, game, seed, network)

    def spent(self, row: str, game: str, seed: int, network: str) -> dict[str, float]:
        """Costs of the whole run, an earlier phase included."""
        return {cost: float(self.runs[row, game, seed, network][cost]) for cost in COSTS}


@cache
def load(folder: Path) -> Study:
    """Read the two files of a study."""

    def lines(name: str) -> Iterable[tuple[tuple[str, str, int, str], dict[str, str]]]:
        with (folder / name).open(newline="") as file:
            for line in csv.DictReader(file):
                yield (line["row"], line["game"], int(line["seed"]), line["network"]), line

    curves: dict[tuple[str, str, int, str], Curve] = {}
    for key, line in lines("evaluations.csv"):
        curve = curves.setdefault(key, {})
        for name in (*COSTS, "score", "agreement", "kl_to_teacher"):
            curve.setdefault(name, []).append(float(line.get(name) or "nan"))
    return Study(folder.name, dict(lines("runs.csv")), curves)


def label(study: Study, row: str, network: str) -> str:
    """A row's name; with the network's, where it has several."""
    return row if len(study.students(row)) == 1 else f"{row}, {network}"


def held(study: Study, row: str, network: str) -> str:
    """Number of runs in which the network held 95 % of the final teacher, of all."""
    reached = [each for game in study.games for each in study.reached(row, game, network)]
    return f"{sum(reached)} of {len(reached)}"


def times(study: Study, row: str, game: str, network: str, cost: str) -> list[float]:
    """Cost of each seed until it held 95 %; one that never did is counted with all that its run spent."""
    return [study.until_held(row, game, seed, network)[cost] for seed in study.seeds(row, game)]


def temperature_of(row: str) -> tuple[str, str] | None:
    """Temperature and the networks it is on, from the name of a row of the sweep such as ``both_1``; None of others."""
    if row == "rtpd":
        return "0.1", "both"  # the script's default
    side, _, temperature = row.partition("_")
    swept = side in ("both", "teacher") and temperature and (temperature == "auto" or temperature[0].isdigit())
    return (temperature, side) if swept else None
