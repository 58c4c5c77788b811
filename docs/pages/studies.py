"""Blocks and figures of the studies of many runs, from their CSV files.

``docs/results/<study>/runs.csv`` holds a line a network of every run, ``evaluations.csv`` its curve; both are what
``examples/study.py <study> --publish docs/results/<study>`` collected.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from docs.pages.study_data import TEACHER, Study, held, load, temperature_of
from docs.pages.study_figures import plot_curves, plot_intervals, plot_temperatures, plot_times
from docs.pages.study_tables import marginal_cost, paper_rows, raw_rows, saved_rows, score_rows, seed_cells, time_rows
from docs.pages.study_verdicts import default_verdict, kind_of, smallest, verdicts
from docs.pages.tables import markdown, with_interval
from torchrl_rtpd.evaluation.comparison import interquartile_mean, probability_of_improvement


def origin(study: Study) -> str:
    """Hardware, commits and the command of each row."""
    lines = list(study.runs.values())
    hardware = ", ".join(sorted({line["cpu"] for line in lines}))
    commits = ", ".join(sorted({line["commit"][:10] for line in lines}))
    commands = {row: next(line["command"] for key, line in study.runs.items() if key[0] == row) for row in study.rows}
    return "\n".join(
        [
            f"Hardware: {hardware}. Commits {commits}. Every run's command is in `docs/results/{study.name}/runs.csv`; "
            "those of the first run of each row:",
            "",
            "```text",
            *commands.values(),
            "```",
            "",
        ]
    )


def heading(study: Study) -> str:
    """Games, seeds and students of the runs."""
    seeds = sorted({seed for _, _, seed, _ in study.runs})
    sizes = {
        name: float(line["parameter_ratio"])
        for (_, _, _, name), line in study.runs.items()
        if name != "teacher" and line["parameter_ratio"]
    }
    single = ", ".join(game for game in study.games if game not in study.repeated().games_of("rtpd"))
    note = f" Of {single} there is one seed: it is in the tables, and no sentence here speaks of it." if single else ""
    students = ", ".join(f"{name} with {size:.1%} of the teacher's parameters" for name, size in sizes.items())
    return "\n".join(
        [
            f"Games {', '.join(study.games)}; seeds {', '.join(map(str, seeds))}; students {students}.{note}",
        ]
    )


def methods_block(study: Study) -> str:
    """The block of a study that compares methods: the comparison, and where its numbers come from."""
    return f"{comparison(study)}\n{origin(study)}"


def comparison(study: Study) -> str:
    """Sentences on each claim and tables of scores, times and the paper's measures."""
    return "\n".join(
        [
            heading(study),
            "",
            *(f"- {sentence}" for sentence in verdicts(study)),
            "",
            "Final scores, normalised by the seed's own final teacher; 95 % intervals by stratified bootstrap, "
            "to which a game with a single seed adds no width; *better "
            "than* is the probability that a run of the row scores higher than one of rtpd.",
            "",
            markdown(score_rows(study, "rtpd")),
            "",
            "The raw scores behind them, in the order of the seeds. A teacher with unlucky last weights is a low bar, "
            "and makes the normalised scores of its seed large:",
            "",
            markdown(raw_rows(study)),
            "",
            *_costs(study),
            "Medians until 95 % of the final teacher was held in two evaluations in a row; both phases of two_stage "
            "count:",
            "",
            markdown(time_rows(study)),
            "",
            "The paper's Max and Mean from the evaluations during the runs, ratios normalised by a random player, and "
            "raw scores of the last weights; means over seeds:",
            "",
            markdown(paper_rows(study)),
            "",
        ]
    )


def _costs(study: Study) -> list[str]:
    """Lines on what is saved beside two phases and what students cost beside none, as far as there are such rows."""
    saved, cost = [], []
    if "two_stage" in study.rows:
        saved = [
            "Time to 95 % by rtpd as a share of two_stage's with the same teacher. Interquartile means of the ratios "
            "with their intervals; runs that never held it are counted with all they spent:",
            "",
            markdown(saved_rows(study)),
            "",
        ]
    if TEACHER in study.rows:
        cost = [
            f"A run with its students takes {marginal_cost(study)} processor time more than the teacher's alone.",
            "",
        ]
    return [*saved, *cost]


def temperature_block(study: Study) -> str:
    """The block of the sweep of temperatures."""
    swept = {row: found for row in study.rows if (found := temperature_of(row)) is not None}
    games = [f"{game}, seeds" for game in study.games]
    table = [["temperature", "on", "interquartile mean", *games, "better than the default", "held 95 %", "agreement"]]
    for row, (temperature, side) in sorted(swept.items(), key=lambda item: (item[1][1], item[1][0])):
        (network,) = study.students(row)
        scores = study.normalised(row, network)
        lines = [line for key, line in study.runs.items() if (key[0], key[3]) == (row, network)]
        table.append(
            [
                temperature,
                "both" if side == "both" else "the teacher; 1 on the student",
                with_interval(interquartile_mean, scores),
                *seed_cells(study, row, network),
                "-" if row == "rtpd" else with_interval(probability_of_improvement, *study.pair(row, "rtpd", network)),
                held(study, row, network),
                f"{statistics.fmean(float(line['agreement']) for line in lines):.2f}",
            ]
        )
    return "\n".join(
        [
            heading(study),
            "",
            default_verdict(study),
            "",
            "The students of rtpd by temperature. Final scores, normalised by the seed's own final teacher; agreement "
            "is that of the kept networks on held-out states.",
            "",
            markdown(table),
            "",
            origin(study),
        ]
    )


def methods(study: Study) -> Study:
    """The rows that differ in more than the temperature."""
    return study.only(row for row in study.rows if row == "rtpd" or temperature_of(row) is None)


def sweep(study: Study) -> Study:
    """The rows of the sweep of temperatures, and the teachers they are measured by."""
    return study.only([study.measure, *(row for row in study.rows if temperature_of(row) is not None)])


def curves(study: Study) -> list[tuple[str, str]]:
    """The networks whose curves are drawn: the smallest student, whatever taught it, and the teacher."""
    network = smallest(study)
    drawn = [(row, network) for row in study.rows if kind_of(row) in CURVES and network in study.students(row)]
    return [*drawn, (study.measure, "teacher")]


METHODS = ("classic", "atari_cpu", "atari_cpu_longer")
"""Studies that compare methods, each with a block of its name and figures."""

CURVES = ("rtpd", "two_stage", "scratch", "td_alone")
FIGURES_OF_METHODS: dict[str, Callable[[Study, Path], None]] = {
    "curves": lambda study, path: plot_curves(study, curves(study), path),
    "intervals": lambda study, path: plot_intervals(methods(study), path),
    "times": lambda study, path: plot_times(methods(study), path),
}


def _block(name: str, make: Callable[[Study], str], results: Path) -> str:
    return make(load(results / name))


def _figure(name: str, plot: Callable[[Study, Path], None], docs: Path, path: Path) -> None:
    plot(load(docs / "results" / name), path)


BLOCKS = {name: partial(_block, name, lambda study: methods_block(methods(study))) for name in METHODS}
BLOCKS["temperature"] = partial(_block, "classic", lambda study: temperature_block(sweep(study)))
"""Makers of the blocks from the folder ``docs/results/``, by name."""

FIGURES = {
    f"results/{study}/{name}.png": partial(_figure, study, plot)
    for study in METHODS
    for name, plot in FIGURES_OF_METHODS.items()
}
FIGURES["results/classic/temperatures.png"] = partial(
    _figure, "classic", lambda study, path: plot_temperatures(sweep(study), path)
)
"""Functions that draw each figure of ``docs/`` into a file, by its path."""
