"""Write the pages and figures of the studies from their CSV files: ``python docs/make_studies.py``.

``docs/results/<study>/runs.csv`` holds a line a network of every run, ``evaluations.csv`` its curve; both are what
``examples/study.py <study> --publish docs/results/<study>`` collected. Nothing in a page is typed by hand.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from study_data import TEACHER, Study, held, label, load, temperature_of, times
from study_figures import plot_curves, plot_intervals, plot_temperatures, plot_times
from study_published import example_rows, papers_rows, study_rows
from study_verdicts import default_verdict, kind_of, smallest, verdicts
from tables import markdown, with_interval

from torchrl_rtpd.evaluation.comparison import (
    COSTS,
    bootstrap_interval,
    interquartile_mean,
    paper_percentages,
    probability_of_improvement,
)

RESULTS = Path(__file__).resolve().parent / "results"


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
            if row not in (baseline, TEACHER) and network in study.students(baseline):
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
            keys = [(row, game, seed, network) for seed in study.seeds(row, game)]
            scores = [float(study.runs[key]["final_score"]) for key in keys]
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
                reached = [study.time(row, game, seed, network) is not None for seed in study.seeds(row, game)]
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
    """Time to 95 % of ``rtpd`` over that of ``two_stage``, pairs of one seed, by game, student and kind of cost."""
    titles = ["game", "student", "cost", "over two_stage", "over two_stage that stops the teacher at 95 %", "pairs"]
    table = [titles]
    for game in study.games_of("two_stage"):
        seeds = study.seeds("rtpd", game, "two_stage")
        for network in study.students("rtpd"):
            for cost in ("steps", "updates", "cpu_seconds"):
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
    low, high = bootstrap_interval(interquartile_mean, ratios)
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


def origin(study: Study) -> str:
    """Where the numbers come from, and the command of each row."""
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
    """Where the page comes from, and what was run."""
    seeds = sorted({seed for _, _, seed, _ in study.runs})
    sizes = {
        name: float(line["parameter_ratio"])
        for (_, _, _, name), line in study.runs.items()
        if name != "teacher" and line["parameter_ratio"]
    }
    single = ", ".join(game for game in study.games if game not in study.repeated().games_of("rtpd"))
    note = f" Of {single} there is one seed: it is in the tables, and no sentence speaks of it." if single else ""
    students = ", ".join(f"{name} with {size:.1%} of the teacher's parameters" for name, size in sizes.items())
    return "\n".join(
        [
            f"<!-- written by docs/make_studies.py from docs/results/{study.name}/*.csv -->",
            "",
            f"Games {', '.join(study.games)}; seeds {', '.join(map(str, seeds))}; students {students}.{note}",
        ]
    )


def methods_page(study: Study) -> str:
    """The page of a study that compares methods."""
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
            *saved,
            *cost,
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
            origin(study),
        ]
    )


def temperature_page(study: Study) -> str:
    """The page of the sweep of temperatures."""
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


def published_page(study: Study) -> str:
    """The percentages of the papers and ours."""
    table = [["student", "loss", "of", "Max, %", "Mean, %", "Mean, normalised"]]
    table += papers_rows(RESULTS / "published.csv")
    table += study_rows(study, {"rtpd": "forward_kl", "reverse_kl": "reverse_kl"})
    table += example_rows(RESULTS / "quick")
    return "\n".join(
        [
            "<!-- written by docs/make_studies.py from docs/results/published.csv and published runs -->",
            "",
            "Medians over games, ours over games and seeds. Max and Mean are the paper's, in per cent of the teacher; "
            "Rusu's is one percentage. Ours are of other games and far shorter runs: this says how far numbers lie "
            "apart, not who is better.",
            "",
            markdown(table),
            "",
        ]
    )


def methods(study: Study) -> Study:
    """The rows that differ in more than the temperature."""
    return study.only(row for row in study.rows if row == "rtpd" or temperature_of(row) is None)


def sweep(study: Study) -> Study:
    """The rows of the sweep of temperatures, and the teachers they are measured by."""
    return study.only([study.measure, *(row for row in study.rows if temperature_of(row) is not None)])


METHODS = ("classic", "atari_cpu", "atari_cpu_longer")
"""Studies that compare methods, each with a page of its name and figures."""

PAGES: dict[str, tuple[str, Callable[[Study], str]]] = {  # name: study and what makes the page
    **{name: (name, lambda study: methods_page(methods(study))) for name in METHODS},
    "temperature": ("classic", lambda study: temperature_page(sweep(study))),
    "published": ("classic", published_page),
}
CURVES = ("rtpd", "two_stage", "scratch", "td_alone")
FIGURES_OF_METHODS: dict[str, Callable[[Study, Path], None]] = {
    "curves": lambda study, path: plot_curves(study, curves(study), path),
    "intervals": lambda study, path: plot_intervals(methods(study), path),
    "times": lambda study, path: plot_times(methods(study), path),
}
FIGURES = {f"{study}/{name}.png": plot for study in METHODS for name, plot in FIGURES_OF_METHODS.items()}
FIGURES["classic/temperatures.png"] = lambda study, path: plot_temperatures(sweep(study), path)


def curves(study: Study) -> list[tuple[str, str]]:
    """The networks whose curves are drawn: the smallest student, whatever taught it, and the teacher."""
    network = smallest(study)
    drawn = [(row, network) for row in study.rows if kind_of(row) in CURVES and network in study.students(row)]
    return [*drawn, (study.measure, "teacher")]


def pages() -> dict[str, str]:
    """Every page by its file name."""
    return {
        f"{name}.md": make(load(RESULTS / study))
        for name, (study, make) in PAGES.items()
        if (RESULTS / study / "runs.csv").exists()
    }


def main() -> None:
    """Write all pages and figures."""
    for name, text in pages().items():
        (RESULTS / name).write_text(text)
    for name, plot in FIGURES.items():
        if (folder := (RESULTS / name).parent).exists():
            plot(load(folder), RESULTS / name)


if __name__ == "__main__":
    main()
