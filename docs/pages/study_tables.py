"""Tables of a study: scores, times, what is saved, and the paper's measures."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from docs.pages.study_data import TEACHER, Study, held, label, times
from docs.pages.tables import interval, with_interval
from torchrl_rtpd.evaluation.comparison import (
    COSTS,
    interquartile_mean,
    paper_percentages,
    probability_of_improvement,
)


def seed_cells(study: Study, row: str, network: str) -> list[str]:
    """Final normalised scores of every seed, a cell a game."""
    cells = []
    for game in study.games:
        (scores,) = study.normalised(row, network, [game])
        cells.append(", ".join(f"{score:.2f}" for score in sorted(scores)) or "-")
    return cells


def score_rows(study: Study, baseline: str) -> list[list[str]]:
    """A line a network of every row: final normalised scores."""
    heading = ["row", "runs", "interquartile mean", *(f"{game}, seeds" for game in study.games)]
    table = [[*heading, f"better than {baseline}", "held 95 %"]]
    for row in study.rows:
        for network in study.students(row):
            scores = study.normalised(row, network)
            better = "-"
            known = row not in (baseline, TEACHER) and network in study.students(baseline)
            if known and sum(map(len, scores)) > 1:  # one pair of runs has no probability
                better = with_interval(probability_of_improvement, *study.pair(row, baseline, network))
            table.append(
                [
                    label(study, row, network),
                    str(sum(map(len, scores))),
                    with_interval(interquartile_mean, scores),
                    *seed_cells(study, row, network),
                    better,
                    held(study, row, network),
                ]
            )
    return table


def raw_rows(study: Study) -> list[list[str]]:
    """A line a network of every row, the measure's teacher first: raw final scores of every seed and their mean."""
    table = [["network", *(title for game in study.games for title in (f"{game}, seeds", "mean"))]]
    names = [(study.measure, "teacher"), *((row, network) for row in study.rows for network in study.students(row))]
    for row, network in dict.fromkeys(names):
        cells = []
        for game in study.games:
            scores = study.finals(row, game, network)
            cells += [", ".join(f"{score:,.0f}" for score in scores) or "-"]
            cells += [f"{statistics.fmean(scores):,.0f}" if scores else "-"]
        table.append([f"{row}, {network}" if network == "teacher" else label(study, row, network), *cells])
    return table


def time_rows(study: Study) -> list[list[str]]:
    """A line a game and network of every row: medians of what was spent until 95 % was held."""
    table = [["game", "row", "reached", "steps", "updates", "CPU seconds", "seconds"]]
    for game in study.games:
        for row in study.rows:
            for network in study.students(row):
                reached = study.reached(row, game, network)
                if not reached:
                    continue
                medians = {cost: statistics.median(times(study, row, game, network, cost)) for cost in COSTS}
                table.append(
                    [
                        game,
                        label(study, row, network),
                        f"{sum(reached)} of {len(reached)}",
                        *(f"{medians[cost]:,.0f}" for cost in ("steps", "updates")),
                        *(f"{medians[cost]:.1f}" for cost in ("cpu_seconds", "training_seconds")),
                    ]
                )
    return table


def saved_rows(study: Study) -> list[list[str]]:
    """Time to 95 % of ``rtpd`` over that of ``two_stage``, pairs of one seed, by game, student and kind of cost.

    Processor seconds are compared where both trained the same students.
    """
    titles = ["game", "student", "cost", "over two_stage", "over two_stage that stops the teacher at 95 %", "pairs"]
    students = study.students("two_stage")
    costs = ("steps", "updates", "cpu_seconds") if students == study.students("rtpd") else ("steps", "updates")
    table = [titles]
    for game in study.games_of("two_stage"):
        seeds = study.seeds("rtpd", game, "two_stage")
        for network in students:
            for cost in costs:
                ratios, strict = [], []
                for seed in seeds:
                    rtpd, two_stage = (
                        study.until_held(row, game, seed, network)[cost] for row in ("rtpd", "two_stage")
                    )
                    teacher = study.measure, game, seed, "teacher"
                    idle = study.spent(*teacher)[cost] - study.until_held(*teacher)[cost]
                    ratios.append(rtpd / two_stage)
                    strict.append(rtpd / (two_stage - idle))
                texts = [with_interval(interquartile_mean, [values]) for values in (ratios, strict)]
                table.append([game, network, cost.replace("_", " "), *texts, str(len(seeds))])
    return table


def marginal_cost(study: Study, row: str = "rtpd") -> str:
    """CPU seconds of training with the students over training without them, less one."""
    ratios = [
        [
            study.spent(row, game, seed, study.students(row)[0])["cpu_seconds"]
            / study.spent(TEACHER, game, seed, "teacher")["cpu_seconds"]
            - 1
            for seed in study.seeds(row, game, TEACHER)
        ]
        for game in study.games_of(TEACHER)
    ]
    low, high = interval(interquartile_mean, ratios)
    return f"{interquartile_mean(ratios):+.0%} [{low:+.0%}, {high:+.0%}]"


def paper_rows(study: Study) -> list[list[str]]:
    """The paper's Max and Mean of every row with a teacher, means over seeds, beside ratios that stay sane."""
    measures = ("max_percent", "mean_percent", "max_normalised", "mean_normalised")
    table = [["game", "row", "Max, %", "Mean, %", "normalised Max", "normalised Mean", "teacher", "student", "random"]]
    for game in study.games:
        for row in study.rows:
            for network in study.students(row):
                runs = [seed for seed in study.seeds(row, game) if (row, game, seed, "teacher") in study.curves]
                if network == "teacher" or not runs:
                    continue
                found = []
                for seed in runs:
                    curves = [study.curves[row, game, seed, name]["score"] for name in (network, "teacher")]
                    found.append(paper_percentages(*curves, study.level(game, seed)[0]))
                cells = []
                for measure, digits in zip(measures, (1, 1, 2, 2), strict=True):
                    values = [one[measure] for one in found if one[measure] is not None]
                    cells.append(f"{statistics.fmean(values):.{digits}f}" if len(values) == len(found) else "-")
                raw = [
                    statistics.fmean(float(study.runs[row, game, seed, name]["final_score"]) for seed in runs)
                    for name in ("teacher", network)
                ]
                random_score = statistics.fmean(study.level(game, seed)[0] for seed in runs)
                scores = [f"{score:,.1f}" for score in (*raw, random_score)]
                table.append([game, label(study, row, network), *cells, *scores])
    return table


def steps_saved(study: Study, game: str) -> tuple[Callable[..., float], list[list[float]]]:
    """The statistic, and steps of the smallest student until 95 % is held over those of two_stage, a ratio a seed."""
    network = study.students("rtpd")[-1]
    ratios = [
        study.until_held("rtpd", game, seed, network)["steps"]
        / study.until_held("two_stage", game, seed, network)["steps"]
        for seed in study.seeds("rtpd", game, "two_stage")
    ]
    return interquartile_mean, [ratios]
