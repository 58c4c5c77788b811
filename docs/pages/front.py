"""The front door: sentences and one chart, from the files of published runs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from docs.pages.people import humans, of_a_human
from docs.pages.runs import Run, entries, load_runs
from docs.pages.study_data import Study, load
from docs.pages.study_figures import band
from docs.pages.study_verdicts import smallest
from docs.pages.tables import interval, with_interval
from torchrl_rtpd.evaluation.comparison import interquartile_mean

GAMES = {
    "cartpole": "CartPole",
    "acrobot": "Acrobot",
    "assault": "Assault",
    "atlantis": "Atlantis",
    "krull": "Krull",
    "pong": "Pong",
    "road_runner": "Road Runner",
}
EXPERT, GAME = "atari_expert", "atlantis"
"""Study and game of the chart on the front page."""
LINES = {  # rows of the chart: label, colour
    "rtpd": ("student, learns while its teacher does", "#0072b2"),
    "two_stage": ("two phases: the teacher first, then the student", "#d55e00"),
    "scratch": ("the same network alone", "#009e73"),
}


def share(study: Study, row: str) -> str:
    """Level of the smallest network in a row, 1 that of its teacher, with its interval."""
    return with_interval(interquartile_mean, study.normalised(row, smallest(study)))


def size(study: Study) -> str:
    """Parameters of the smallest student, in per cent of its teacher's."""
    own = "rtpd", smallest(study)
    ratios = [float(line["parameter_ratio"]) for key, line in study.runs.items() if (key[0], key[3]) == own]
    return f"{100 * statistics.median(ratios):.1f} %"


def front_block(results: Path) -> str:
    """Five sentences: a game that is learned, beside other methods, what minutes of Atari make, the cost, the limit."""
    return "\n".join(
        f"- {sentence}"
        for sentence in (
            _learned(load(results / EXPERT)),
            _claim(load(results / "classic")),
            _minutes(load_runs(results / "quick")),
            _cost(json.loads((results / "gpu.json").read_text())),
            _limit(load(results / "atari_cpu_longer")),
        )
    )


def points(study: Study, network: str, row: str = "rtpd") -> str:
    """Scores of a network's last weights in the game of the front page, from the lowest seed to the highest."""
    scores = study.finals(row, GAME, network)
    low, high = f"{min(scores):,.0f}", f"{max(scores):,.0f}"
    return low if low == high else f"{low} to {high}"


def levels(study: Study) -> str:
    """Part of a sentence on where the smallest student, its teacher and the same network alone end, beside a human."""
    student = smallest(study)
    return (
        f"ends at {points(study, student)} points, its teacher at {points(study, 'teacher')}, one from two phases "
        f"at {points(study, student, 'two_stage')}, the same network alone at "
        f"{points(study, student, f'scratch_{student}')}; a human has {humans()[GAME]:,.0f}"
    )


def _learned(study: Study) -> str:
    student, seeds = smallest(study), study.seeds("rtpd", GAME)
    runs = [study.runs["rtpd", GAME, seed, student] for seed in seeds]
    agreement, constant = (
        100 * statistics.median(float(run[key]) for run in runs) for key in ("final_agreement", "final_favourite")
    )
    taught = study.seeds("two_stage", GAME)
    phases = study.runs["two_stage", GAME, taught[0], student]
    again = statistics.fmean(score for seed in taught for score in study.replayed(GAME, seed))
    minutes = statistics.median(float(run["cpu_seconds"]) for run in runs) / 60
    return (
        f"**In {GAMES[GAME]} a student with {size(study)} of its teacher's parameters {levels(study)}** "
        f"({float(runs[0]['steps']):,.0f} agent steps, {float(phases['steps']):,.0f} in two phases; {minutes:.0f} "
        f"minutes of one CPU core for teacher and four students, evaluations left out; last weights in "
        f"{runs[0]['episodes']} games, {counted(seeds)}). The student prefers its teacher's action in "
        f"{agreement:.0f} % of the states, where a constant action would in {constant:.0f} %; the teacher's "
        f"last weights scored {again:,.0f} when they were played again."
    )


def _claim(study: Study) -> str:
    games = " and ".join(GAMES[game] for game in study.games)
    runs = sum(map(len, study.normalised("rtpd", smallest(study))))
    return (
        f"**A student with {size(study)} of its teacher's parameters ends at {share(study, 'rtpd')} of its teacher**; "
        f"the same network that learns alone ends at {share(study, 'scratch')} ({games}, {runs} runs each; "
        "interquartile means with 95 % intervals, 0 is a random player and 1 the teacher)."
    )


def _minutes(runs: list[Run]) -> str:
    (teacher, human), (student, copied) = (_of_humans(runs, name) for name in ("teacher", "net17"))
    agreement = 100 * statistics.median(network["agreement"] for network in student)
    minutes = max(run["seconds"] for run in runs) / 60
    size = f"{100 * student[0]['parameter_ratio']:.1f} %"
    return (
        f"**{minutes:.0f} minutes on two CPU cores make a teacher of {human} of a human in {GAMES[runs[0]['game']]}, "
        f"and a student of {copied} with {size} of its parameters**; they prefer the same action in {agreement:.0f} % "
        f"of the states (`python examples/rtpd_atari.py`, {len(runs)} seeds, {teacher[0]['episodes']} games each; "
        "0 is their random player and 1 a human; the share is a median)."
    )


def _of_humans(runs: list[Run], name: str) -> tuple[list[Run], str]:
    """Entries of a network in every run, and their scores' range, 1 being a human."""
    found = entries(runs, name)
    known = (of_a_human(own["score_mean"], run["random_score"], run["game"]) for run, own in found)
    shares = [share for share in known if share is not None]
    assert len(shares) == len(found), f"nobody has told how a human plays {runs[0]['game']}"
    return [own for _, own in found], f"{min(shares):.2f} to {max(shares):.2f}"


def _cost(gpu: dict) -> str:
    alone, fleet = (gpu["update_ms"][name]["captured"] for name in ("teacher", "the paper's five"))
    return (
        f"**On a GPU an update of the teacher and five students takes {fleet / alone:.1f} times as long as one of the "
        f"teacher alone**, {fleet:.2f} ms for {alone:.2f} ms ({gpu['environment']['device']}, minibatches of 32; "
        "medians, no intervals were saved)."
    )


def _limit(study: Study) -> str:
    alone = f"scratch_{smallest(study)}"
    (student,), (other,) = study.pair("rtpd", alone, smallest(study))
    ends = interval(interquartile_mean, [student]), interval(interquartile_mean, [other])
    apart = ends[0][0] > ends[1][1] or ends[1][0] > ends[0][1]
    (game,) = study.games
    return (
        f"**Short runs {'show a difference' if apart else 'do not show that a small network needs the teacher'}**: "
        f"on {GAMES[game]} the smallest student ends at {share(study, 'rtpd')} of its teacher, and the same network "
        f"alone at {share(study, alone)} ({len(student)} seeds of short runs)."
    )


def front_figure(docs: Path, path: Path) -> None:
    """The game of the front page, as :func:`draw_game` draws it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    draw_game(axes, load(docs / "results" / EXPERT), GAME)
    figure.legend(loc="outside upper center", ncols=2, fontsize="medium", frameon=False)
    figure.savefig(path, dpi=150)


def draw_game(axes: Any, study: Study, game: str) -> None:
    """Raw scores of teacher, smallest student and baselines; dots at the end are those of the final games."""
    student = smallest(study)
    rows = {f"scratch_{student}" if row == "scratch" else row: named for row, named in LINES.items()}
    drawn = {("rtpd", "teacher"): ("teacher", "black")}
    drawn |= {(row, student): named for row, named in rows.items() if study.seeds(row, game)}
    for (row, network), (name, color) in drawn.items():
        curves = [study.curves[row, game, seed, network] for seed in study.seeds(row, game)]
        steps = [step / 1_000 for step in curves[0]["steps"]]
        middle, low, high = band([curve["score"] for curve in curves])
        axes.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
        axes.plot(steps, middle, color=color, label=name, linewidth=2)
        finals = study.finals(row, game, network)
        axes.plot([1.02 * steps[-1]] * len(finals), finals, "o", color=color, markersize=5)
    seeds = study.seeds("rtpd", game)
    chance = statistics.fmean(study.level(game, seed)[0] for seed in seeds)
    axes.axhline(humans()[game], color="black", linestyle=":", linewidth=1, label="a human")
    axes.axhline(chance, color="grey", linestyle="--", linewidth=1, label="a random player")
    axes.set(title=f"{GAMES[game]}, {counted(seeds)}", ylabel="points", xlabel="thousand agent steps")
    axes.grid(alpha=0.3)


def counted(seeds: list[int]) -> str:
    """Number of seeds, as text."""
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
