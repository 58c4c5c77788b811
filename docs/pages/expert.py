"""Runs of whole length: what a student of any size costs and gives, a table a game, beside a human.

Numbers come from the study ``atari_expert``, references from :mod:`docs.pages.people`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from docs.pages.front import EXPERT, GAMES, draw_game
from docs.pages.people import humans, of_a_human
from docs.pages.studies import comparison, origin
from docs.pages.study_data import Study, label, load
from docs.pages.study_figures import WIDTH, figure, plot_intervals, plot_times
from docs.pages.study_verdicts import level_verdict, smallest
from docs.pages.tables import markdown, with_interval
from torchrl_rtpd.evaluation.comparison import interquartile_mean
from torchrl_rtpd.functional.scores import normalised_score

SOLVED = {"pong": 18.0}
"""Scores at which a game counts as solved, of 21 points that end one of Pong."""
COLUMNS = (
    "network",
    "of the teacher's parameters",
    "int8 file, kB",
    "ms",
    "int8, ms",
    "scores",
    "of a human",
    "of the teacher",
    "agreement (favourite)",
    "own agreement (favourite)",
    "regret (own)",
)
PAIRS = (("agreement", "favourite"), ("own_agreement", "own_favourite"), ("regret", "own_regret"))
"""Measures that stand beside each other in a cell, the second in brackets: the last of ``COLUMNS``."""


def expert_block(results: Path) -> str:
    """A table for each game that rtpd has runs of, and where all come from."""
    study = load(results / EXPERT)
    games = study.games_of("rtpd")
    parts = [(_heading(study, game), "", *_claims(study, game), "", _table(study, game), "") for game in games]
    return "\n".join([*(line for part in parts for line in part), origin(study)])


def compared(study: Study) -> Study:
    """The games in which students of two phases stand beside those that learned with their teacher."""
    return study.of_games(*study.games_of("two_stage"))


def methods_block(results: Path) -> str:
    """Rows beside each other in the games that have both methods: scores, and steps until 95 % of the teacher."""
    return comparison(compared(load(results / EXPERT)))


def intervals_figure(docs: Path, path: Path) -> None:
    """Shares of the teacher at the end of the same runs."""
    plot_intervals(compared(load(docs / "results" / EXPERT)), path)


def times_figure(docs: Path, path: Path) -> None:
    """Steps of the same runs until 95 % of the final teacher."""
    plot_times(compared(load(docs / "results" / EXPERT)), path)


def expert_figure(docs: Path, path: Path) -> None:
    """Raw scores of each game, a panel each."""
    study = load(docs / "results" / EXPERT)
    games = study.games_of("rtpd")
    drawn, panels = figure(WIDTH, 3.4 * len(games) + 0.6, len(games))
    for axes, game in zip(panels, games, strict=True):
        draw_game(axes, study, game)
    fullest = max(panels, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
    drawn.legend(
        *fullest.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="medium", frameon=False
    )
    drawn.savefig(path, dpi=110)


def _heading(study: Study, game: str) -> str:
    runs = [key for key in study.runs if key[:2] == ("rtpd", game)]
    steps, updates = ({f"{float(study.runs[key][count]):,.0f}" for key in runs} for count in ("steps", "updates"))
    games = {study.runs[key]["episodes"] for key in runs}
    length = f"{', '.join(sorted(steps))} agent steps and {', '.join(sorted(updates))} updates a run"
    seeds = ", ".join(map(str, study.seeds("rtpd", game)))
    return (
        f"**{GAMES.get(game, game)}**: {length}, seeds {seeds}; the last weights on {', '.join(sorted(games))} games."
    )


def _claims(study: Study, game: str) -> list[str]:
    """Lines on the level of teacher and smallest student: in points, beside a human and beside each other."""
    student, seeds = smallest(study), study.seeds("rtpd", game)
    lines = []
    if game in SOLVED:
        ends = {name: study.finals("rtpd", game, name) for name in ("teacher", student)}
        reached = [f"{name} in {sum(score >= SOLVED[game] for score in ends[name])}" for name in ends]
        lines = [f"- **{SOLVED[game]:.0f} points or more?** {' and '.join(reached)} of {len(seeds)} seeds."]
    shares = [of_a_human(score, low, game) for low, score in (study.level(game, seed) for seed in seeds)]
    known = [share for share in shares if share is not None]
    if known:
        answer = "Yes" if interquartile_mean([known]) >= 1 else "No"
        lines += [f"- **Is the teacher as good as a human?** {answer}: {with_interval(interquartile_mean, [known])}."]
    lines += [_again(study, game, seed) for seed in study.seeds("two_stage", game)]
    if len(seeds) > 1:
        lines += [f"- {level_verdict(study.of_games(game), student)}"]
    return lines


def _again(study: Study, game: str, seed: int) -> str:
    """Line on how much the same weights differ from games to games: those of the teacher that two phases froze."""
    scores = study.replayed(game, seed)
    return (
        f"- The same weights of seed {seed}'s teacher, played again {len(scores)} times while it taught in two phases: "
        f"{min(scores):,.0f} to {max(scores):,.0f}, {statistics.fmean(scores):,.0f} in the mean; "
        f"{study.level(game, seed)[1]:,.0f} in the final games."
    )


def _table(study: Study, game: str) -> str:
    every = dict.fromkeys((row, name) for row, where, _, name in study.runs if where == game)
    students = [(row, name) for row, name in every if name != "teacher"]
    chance = ", ".join(f"{study.level(game, seed)[0]:,.1f}" for seed in study.seeds("rtpd", game))
    references = {"a random player": chance, "a human": f"{humans()[game]:,.1f}" if game in humans() else "-"}
    shares = {"a random player": "0", "a human": "1"}
    return markdown(
        [
            COLUMNS,
            *(_row(study, game, *name) for name in [(study.measure, "teacher"), *students]),
            *([name, "", "", "", "", scores, shares[name], *[""] * 4] for name, scores in references.items()),
        ]
    )


def _row(study: Study, game: str, row: str, network: str) -> list[str]:
    seeds = [seed for seed in study.seeds(row, game) if (row, game, seed, network) in study.runs]
    lines = [study.runs[row, game, seed, network] for seed in seeds]
    whole = float(study.runs[study.measure, game, seeds[0], "teacher"]["parameters"])
    scores = [float(line["final_score"]) for line in lines]
    levels = [study.level(game, seed) for seed in seeds]
    human = [of_a_human(score, low, game) for score, (low, _) in zip(scores, levels, strict=True)]
    shares = [normalised_score(score, *level) for score, level in zip(scores, levels, strict=True)]
    return [
        "teacher" if network == "teacher" else label(study, row, network),
        f"{float(lines[0]['parameters']) / whole:.1%}",
        _mean(lines, "file_bytes_int8", "{:,.0f}", divisor=1_000),
        _mean(lines, "latency_ms", "{:.3f}"),
        _mean(lines, "latency_int8_ms", "{:.3f}"),
        ", ".join(f"{score:,.1f}" for score in scores),
        *("-" if None in found else with_interval(interquartile_mean, [found]) for found in (human, shares)),
        *(["-"] * len(PAIRS) if network == "teacher" else (_pair(lines, *keys) for keys in PAIRS)),
    ]


def _pair(lines: list[dict[str, str]], first: str, second: str) -> str:
    texts = [_mean(lines, f"final_{key}", "{:.2f}") for key in (first, second)]
    return "-" if texts == ["-", "-"] else f"{texts[0]} ({texts[1]})"


def _mean(lines: Iterable[dict[str, str]], key: str, form: str, divisor: float = 1.0) -> str:
    """Mean of an entry; a dash where no run has it, as one without a teacher has no agreement."""
    found = [float(text) / divisor for line in lines if (text := line.get(key))]
    return form.format(statistics.fmean(found)) if found else "-"
