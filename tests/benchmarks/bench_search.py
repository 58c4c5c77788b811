"""A search for the smallest student beside runs that answer the same question, and its price in processor time.

    python tests/benchmarks/bench_search.py --out docs/results/search.json
    python tests/benchmarks/bench_search.py --games 1 --seeds 1 --steps 1024 --episodes 10

For each game and seed three runs of ``examples/rtpd_classic.py``, each in a process of its own: a single student, the
sixteen of the ladder to the end, and the search (``students=auto``). A student learns in company what it learns alone,
bit for bit (tests/runs/test_size_search.py), so the run of all sixteen stands for sixteen separate ones, each of which
is judged for itself. The truth is the smallest student that is found good enough. A run that the file
has already is not repeated.

The rungs and the rule of the search were chosen on the seeds 0 to 2; the seeds here begin at 3.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import parsed_options

from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.size_search import SizeSearch

NUMBERS = {"games": 2, "seeds": 3, "steps": 20_480, "episodes": 40}
EXAMPLE = Path(__file__).parents[2] / "examples" / "rtpd_classic.py"
GAMES = ("cartpole", "acrobot")
FIRST_SEED = 3
LADDER = tuple(f"mlp{units}" for units in (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96))
WAYS = {"one": "[mlp16]", "all": f"[{','.join(LADDER)}]", "search": "auto"}


def one_run(game: str, seed: int, way: str, steps: int, episodes: int) -> dict[str, Any]:
    """Answer of a run, and the processor seconds of its process and of the learning in it."""
    with tempfile.TemporaryDirectory() as folder:
        evaluated = [f"evaluate_every_steps={steps // 8}", f"evaluate_from_steps={steps // 4}"]
        overrides = [f"game={game}", f"seed={seed}", f"students={WAYS[way]}", f"output_dir={folder}/run"]
        overrides += [*evaluated, f"total_steps={steps}", f"final_episodes={episodes}", "threads=1"]
        overrides += ["progress_bar=false", "tensorboard=false"]
        quiet = subprocess.DEVNULL
        before = os.times()
        subprocess.run([sys.executable, str(EXAMPLE), *overrides], check=True, stdout=quiet, stderr=quiet)
        after = os.times()
        results = json.loads((Path(folder) / "run" / "results.json").read_text())
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    row = {
        "game": game,
        "seed": seed,
        "way": way,
        "processor_seconds": spent,
        "learning_seconds": results["cpu_seconds"],
    }
    return row if way == "one" else {**row, "found": answer(results)}


def answer(results: dict[str, Any]) -> dict[str, Any]:
    """Smallest student that is sure to hold the share, and what is known of each: of a search's run its own answer."""
    if "search" in results:
        return results["search"]
    teacher, *students = results["networks"]
    ladder = []
    for student in sorted(students, key=lambda row: row["parameters"]):
        search = SizeSearch()
        search.ladder = {student["name"]: {"parameters": student["parameters"]}}
        found = search.conclusion({**results, "networks": [teacher, student]})
        ladder += [{**row, "chosen": found["chosen"] is not None} for row in found["ladder"]]
    return {**found, "chosen": next((row["name"] for row in ladder if row["chosen"]), None), "ladder": ladder}


def verdicts(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each game and seed that has all its runs: the answer, the truth, and the search's price."""
    found = []
    for game, seed in dict.fromkeys((run["game"], run["seed"]) for run in runs):
        ways = {run["way"]: run for run in runs if (run["game"], run["seed"]) == (game, seed)}
        if len(ways) < len(WAYS):
            continue
        chosen, smallest = ways["search"]["found"]["chosen"], ways["all"]["found"]["chosen"]
        place = {None: len(LADDER), **{name: place for place, name in enumerate(LADDER)}}
        costs = {
            f"{what}_ratio": ways["search"][f"{what}_seconds"] / ways["one"][f"{what}_seconds"]
            for what in ("processor", "learning")
        }
        no_larger = place[chosen] <= place[smallest]
        found.append(
            {"game": game, "seed": seed, "chosen": chosen, "smallest": smallest, "no_larger": no_larger, **costs}
        )
    return found


def main() -> None:
    """Run what is missing, save after each run."""
    options = parsed_options(__doc__, NUMBERS)
    runs = json.loads(options.out.read_text())["runs"] if options.out is not None and options.out.exists() else []
    made = {(run["game"], run["seed"], run["way"]) for run in runs}
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        for game in GAMES[: options.games]:
            for way in (way for way in WAYS if (game, seed, way) not in made):
                runs.append(one_run(game, seed, way, options.steps, options.episodes))
                print({key: value for key, value in runs[-1].items() if key != "found"}, flush=True)
                if options.out is not None:
                    write_json(options.out, summary(runs, options.episodes))
    print(json.dumps(summary(runs, options.episodes)["verdicts"], indent=1))


def summary(runs: list[dict[str, Any]], episodes: int) -> dict[str, Any]:
    """Content of the file: all runs, the verdicts, and medians of the ratios."""
    found = verdicts(runs)
    medians = {
        key: statistics.median(row[key] for row in found) for key in ("processor_ratio", "learning_ratio") if found
    }
    return {"runs": runs, "verdicts": found, **medians, "episodes": episodes, "environment": run_environment()}


if __name__ == "__main__":
    main()
