"""The block on how fast games are played, by their number and by threads, from what the benchmarks saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.pages.tables import made_by, markdown

FEW_THREADS = 2


def games_block(results: Path) -> str:
    """The block of the second half of ``env.json``, and of the games alone of ``gpu.json``."""
    result = json.loads((results / "env.json").read_text())["games"]
    parts = [
        *(_sweep_text(result), "", markdown(_sweep_rows(result["sweep"])), ""),
        *("One game in one thread, in processor milliseconds:", "", markdown(_single_rows(result["one_game_ms"])), ""),
        *(_torch_text(result), "", many_cores_text(json.loads((results / "gpu.json").read_text())), ""),
        *(made_by(result["environment"]), ""),
    ]
    return "\n".join(parts)


def _sweep_text(result: Mapping[str, Any]) -> str:
    options = result["options"]
    before, after = options["load"]
    return (
        f"Random play in {options['game']}, {options['sweep_steps']} steps of all games, taking turns, beside other "
        f"programs (load average {before:.0f} before, {after:.0f} after). Times by the clock and ratios of speed show "
        "that load as much as the engines; processor milliseconds, summed over all threads, hardly do. A rate is one "
        "over the median time of a step."
    )


def _sweep_rows(sweep: list[dict[str, Any]]) -> list[list[str]]:
    rows = [
        [
            "games",
            "threads",
            "ALE, steps a second",
            "ms a step, median",
            "99th percentile",
            "processor ms",
            "`AtariVecEnv`, of ALE's speed",
            "99th percentile, ms",
            "processor ms",
            "EnvPool, of ALE's speed",
            "processor ms",
        ]
    ]
    found = {(row["games"], row["threads"], row["engine"]): row for row in sweep}
    for games, threads, engine in found:
        if engine != "ale":
            continue
        ale, ours, pool = (found.get((games, threads, name)) for name in ("ale", "ours", "envpool"))
        assert ale is not None and ours is not None
        cells = [f"{games}", f"{threads}", f"{ale['steps_per_second']:,.0f}"]
        cells += [f"{ale['ms'][percent]:.1f}" for percent in ("50", "99")]
        cells += [f"{ale['processor_ms']:.1f}", f"{ours['speed_of_ale']:.2f}", f"{ours['ms']['99']:.1f}"]
        cells += [f"{ours['processor_ms']:.1f}"]
        cells += ["-", "-"] if pool is None else [f"{pool['speed_of_ale']:.2f}", f"{pool['processor_ms']:.1f}"]
        rows.append(cells)
    return rows


def _single_rows(games: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    rows = [["game", "a step", "four frames emulated", "a new game", "in steps", "opening", "a seed's first game"]]
    for game, ms in games.items():
        cells = [f"{ms[name]:.2f}" for name in ("step", "four_frames", "new_game")]
        cells += [f"{ms['new_game'] / ms['step']:.0f}"]
        rows.append([game, *cells, *(f"{ms[name]:.0f}" for name in ("opening", "first_game_of_a_seed"))])
    return rows


def _torch_text(result: Mapping[str, Any]) -> str:
    ms = result["beside_torch_ms"]
    games = min(64, result["options"]["most_games"])
    return (
        f"After a copy of the frames by torch, a step of {games} games takes {ms['1']:.1f} processor milliseconds if "
        f"torch has one thread, and {ms['2']:.1f} if it has two."
    )


def fixed_and_game_ms(games: int, step_ms: Mapping[int, float]) -> tuple[float, float]:
    """Milliseconds of a step that no thread shares, and of one game, from the steps at two numbers of threads.

    Solves ``step = fixed + games * game / threads``.

    Args:
        games: played at once.
        step_ms: milliseconds of a step, by the number of threads; two of them.

    Returns:
        The fixed part and the part of one game.
    """
    (few, slow), (many, fast) = sorted(step_ms.items())
    game = (slow - fast) / (games / few - games / many)
    return slow - games * game / few, game


def many_cores_text(gpu: Mapping[str, Any]) -> str:
    """The sentence on the games alone that ``tests/benchmarks/gpu.py`` played.

    Args:
        gpu: what that script saved.
    """
    label = "64 games"
    games, alone = int(label.split()[0]), "games alone, "
    speeds = {
        int(name.removeprefix(alone).split()[0]): speed
        for name, speed in gpu["playing"][label].items()
        if name.startswith(alone)
    }
    step_ms = {threads: 1e3 * games / speed for threads, speed in speeds.items()}
    fixed, game = fixed_and_game_ms(games, step_ms)
    measured = " and ".join(f"{ms:.1f} ms with {threads} threads" for threads, ms in sorted(step_ms.items()))
    return (
        f"On {gpu['environment']['cpu']}, {label} of Pong took {measured} a step. If a step is a part that no thread "
        f"shares and a part that equally fast threads share, one game takes {game:.2f} ms there and the fixed part "
        f"{fixed:.1f} ms. "
        f"Then {FEW_THREADS} threads would take {games * game / FEW_THREADS:.0f} ms for the games alone."
    )
