"""Results at a glance: eleven lines, each from a file, with the page that has the rest."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from docs.pages.front import EXPERT, GAME, GAMES, counted, levels, share, size
from docs.pages.runs import drop_in_runs, entries, load_runs
from docs.pages.study_data import Study, load, temperature_of
from docs.pages.study_tables import steps_saved
from docs.pages.study_verdicts import smallest
from docs.pages.tables import interval, with_interval
from torchrl_rtpd.evaluation.comparison import probability_of_improvement


def glance_block(results: Path) -> str:
    """Eleven claims with their numbers."""
    classic, longer = load(results / "classic"), load(results / "atari_cpu_longer")
    saved = {name: json.loads((results / f"{name}.json").read_text()) for name in ("gpu", "speed", "memory", "kills")}
    lines = [
        *_classic(classic),
        _temperature(classic),
        _stock(drop_in_runs(results)),
        _learned(load(results / EXPERT)),
        _quick(load_runs(results / "quick")),
        _longer(longer),
        _gpu(saved["gpu"]),
        _speed(saved["speed"]),
        _memory(saved["memory"], saved["kills"]),
    ]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _classic(study: Study) -> list[str]:
    page = "([methods](methods.md))"
    games = " and ".join(GAMES[game] for game in study.games)
    ratios = ", ".join(f"{with_interval(*steps_saved(study, game))} on {GAMES[game]}" for game in study.games)
    return [
        f"**As good as its teacher.** A student with {size(study)} of the parameters ends at {share(study, 'rtpd')} of "
        f"its teacher on {games}, one from two phases at {share(study, 'two_stage')}, the same network alone at "
        f"{share(study, 'scratch')} {page}.",
        f"**Fewer steps than two phases.** It holds 95 % of the teacher's level after this share of their steps: "
        f"{ratios} {page}.",
        f"**The divergence does the work.** Students that learn from the teacher's minibatches by TD alone end at "
        f"{share(study, 'td_alone')}, those that learn by the divergence alone at {share(study, 'without_td')} {page}.",
    ]


def _temperature(study: Study) -> str:
    swept = [row for row in study.rows if row != "rtpd" and temperature_of(row) is not None]
    ends = [interval(probability_of_improvement, *study.pair(row, "rtpd", smallest(study))) for row in swept]
    better, worse = sum(low > 0.5 for low, _ in ends), sum(high < 0.5 for _, high in ends)
    return (
        f"**The default temperature, 0.1 on both networks.** Of {len(swept)} other settings {better} do better and "
        f"{worse} worse, as far as ten runs each can tell ([methods](methods.md#the-temperature))."
    )


def _stock(runs: dict[str, dict[str, Any]]) -> str:
    shares: dict[str, list[float]] = {}
    for name, run in runs.items():
        shares.setdefault(name.split("-")[0].removeprefix("drop_in_"), []).append(run["networks"][1]["normalised"])
    texts = [f"{statistics.median(shares[name]):.2f} in {name.upper()}" for name in ("dqn", "ppo", "sac")]
    return (
        f"**In TorchRL's own trainers** students end at {', '.join(texts)} of their teachers, medians of "
        f"{len(shares['dqn'])} seeds ([students](students.md#in-stock-trainers))."
    )


def _learned(study: Study) -> str:
    seeds = study.seeds("rtpd", GAME)
    return (
        f"**Longer runs of {GAMES[GAME]}.** The smallest student {levels(study)} ({counted(seeds)}; "
        "[longer runs on a CPU](expert.md))."
    )


def _quick(runs: list[dict[str, Any]]) -> str:
    students = [student for _, student in entries(runs, "net17")]
    found = [student["normalised"] for student in students]
    agreement = statistics.median(student["agreement"] for student in students)
    return (
        f"**Minutes of {GAMES[runs[0]['game']]}.** The smallest student ends at {min(found):.2f} to "
        f"{max(found):.2f} of its teacher in {len(found)} runs, median {statistics.median(found):.2f}, and prefers the "
        f"same action in {100 * agreement:.0f} % of the states ([Atari](atari.md))."
    )


def _longer(study: Study) -> str:
    (game,) = study.games
    alone = f"scratch_{smallest(study)}"
    return (
        f"**What short runs do not show.** After the longer ones of {GAMES[game]} the smallest student ends at "
        f"{share(study, 'rtpd')} of its teacher, one from two phases at {share(study, 'two_stage')}, the same network "
        f"alone at {share(study, alone)}: too short to need a teacher ([Atari](atari.md#more-than-twice-as-long))."
    )


def _gpu(result: dict[str, Any]) -> str:
    alone, fleet = (result["update_ms"][name] for name in ("teacher", "the paper's five"))
    minutes = result["training"]["five students, captured"]["minutes_for_ten_million"]
    return (
        f"**On a GPU** an update of teacher and five students takes {fleet['captured']:.2f} ms as one CUDA graph, "
        f"{fleet['captured'] / alone['captured']:.1f} times the teacher's alone and "
        f"{fleet['captured'] / fleet['eager']:.2f} of the time without a graph; ten million steps would take "
        f"{minutes:.0f} minutes ([GPU](gpu.md))."
    )


def _speed(result: dict[str, Any]) -> str:
    over = result["ours_over"]["student"]["none"]
    return (
        f"**On two CPU cores** teacher and student train at {over['stable_baselines3']:.2f} times the speed of "
        f"stable-baselines3's teacher alone, {over['torchrl_stock']:.2f} of TorchRL's stock way and "
        f"{over['plain']:.2f} of a plain loop ([speed](speed.md))."
    )


def _memory(memory: dict[str, Any], kills: dict[str, Any]) -> str:
    return (
        f"**A million transitions take {memory['resident_gb_most']:.1f} GB**, {memory['bytes_per_transition']:,.0f} "
        f"bytes each, and memory grows by {memory['growth_percent']:.2f} % during a run ([memory](memory.md)); "
        f"{kills['kills']} kills lost {kills['lost']} rows of metrics ([promises](promises.md))."
    )
