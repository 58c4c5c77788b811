"""Scores of the same training in one machine's processes and on Ray, at full length, over seeds.

    python tests/benchmarks/bench_distributed.py --out docs/results/distributed.json
    python tests/benchmarks/bench_distributed.py --seeds 2 --steps 1024 --games 2

Each run is ``examples/rtpd_distributed.py`` in a process of its own. A run that the file has already is not repeated,
so that the script can be cut off and started again. The tolerance was set before any run: mean scores over the seeds
that all ways have may differ by a tenth of the best score. Runs under ``discarded`` were made with other numbers of the
example, which were changed because of them; they stay in the file with the reason, and the page shows them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from turns import parsed_options

from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json

NUMBERS = {"seeds": 5, "steps": 0, "games": 50, "ways": 3}  # 0 steps: as many as the example takes
EXAMPLE = Path(__file__).parents[2] / "examples" / "rtpd_distributed.py"
WAYS = {
    "processes": ["--backend", "process"],
    "ray, two learners": ["--backend", "ray", "--cpus", "6", "--learners", "2"],
    "ray, learning here": ["--backend", "ray", "--cpus", "6"],
}
TEACHERS = ("dqn", "pqn")
BEST_SCORE = 500.0
TOLERANCE = 0.1


def one_run(teacher: str, way: str, seed: int, steps: int, games: int) -> dict[str, Any]:
    """Scores, seconds and the machine's load of one run with two collectors."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(EXAMPLE), "--teacher", teacher, "--sync", "--workers", "2", *WAYS[way]]
        command += ["--seed", str(seed), "--episodes", str(games), "--out", folder]
        command += ["--steps", str(steps)] if steps else []
        # Workers are as important as what waits for them, and find the example's parts.
        paths = [str(EXAMPLE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "RAY_worker_niceness": "0", "PYTHONPATH": os.pathsep.join(paths)}
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        result = json.loads((Path(folder) / "results.json").read_text())
    scores = {network["name"]: network["score_mean"] for network in result["networks"]}
    where = {"algorithm": teacher, "way": way, "seed": seed, "steps": result["steps"]}
    made = {"seconds": seconds, "load": os.getloadavg()[0], "commit": run_environment()["commit"]}
    return {**where, "scores": scores, **made}


def differences(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds that all ways have, by kind of teacher and way, and whether they are alike."""
    found: dict[str, Any] = {}
    for teacher in TEACHERS:
        by_way: dict[str, dict[int, dict[str, float]]] = {}
        for run in runs:
            if run["algorithm"] == teacher:
                by_way.setdefault(run["way"], {})[run["seed"]] = run["scores"]
        seeds = sorted(set.intersection(*(set(scores) for scores in by_way.values())))
        means = {
            way: {name: statistics.mean(scores[seed][name] for seed in seeds) for name in scores[seeds[0]]}
            for way, scores in by_way.items()
        }
        apart = [abs(mean[name] - means["processes"][name]) for mean in means.values() for name in mean]
        found[teacher] = {
            "seeds": seeds,
            "means": means,
            "largest_difference": max(apart),
            "alike": max(apart) <= TOLERANCE * BEST_SCORE,
        }
    return found


def main() -> None:
    """Run what is missing, save after each run."""
    options = parsed_options(__doc__, NUMBERS)
    known = options.out is not None and options.out.exists()
    saved = json.loads(options.out.read_text()) if known else {}
    runs, discarded = saved.get("runs", []), saved.get("discarded", [])
    wanted = [
        (teacher, way, seed)
        for seed in range(options.seeds)
        for way in list(WAYS)[: options.ways]
        for teacher in TEACHERS
    ]
    for teacher, way, seed in wanted:
        if any((run["algorithm"], run["way"], run["seed"]) == (teacher, way, seed) for run in runs):
            continue
        runs.append(one_run(teacher, way, seed, options.steps, options.games))
        print(runs[-1], flush=True)
        if options.out is not None:
            write_json(options.out, summary(runs, discarded, options.games))
    print(json.dumps(summary(runs, discarded, options.games)))


def summary(runs: list[dict[str, Any]], discarded: list[dict[str, Any]], games: int) -> dict[str, Any]:
    """What the file holds."""
    complete = {(run["algorithm"], run["way"]) for run in runs} >= {(kind, "processes") for kind in TEACHERS}
    return {
        "runs": runs,
        "discarded": discarded,
        "compared": differences(runs) if complete else {},
        "tolerance": TOLERANCE * BEST_SCORE,
        "best_score": BEST_SCORE,
        "games": games,
        "ray": version("ray"),
        "environment": run_environment(),
    }


if __name__ == "__main__":
    main()
