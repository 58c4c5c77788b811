"""Training speed of the main example against another program that does the same work, in one run.

    python tests/benchmarks/bench_loop.py --baseline PATH --out docs/results/speed.json

Both train a teacher and one student by its divergence alone: same game, slots, batch, updates a step, threads. The
baseline is a script that takes ``--game --steps --start --envs --batch --every --threads --seed`` and prints
``"steps_per_second"`` as JSON on its last line. Runs alternate, so that a machine that slows down slows both; speeds
are agent steps a second from the first update on, and only their ratio means something elsewhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from main_example import ROOT, steps_per_second

from torchrl_rtpd.report import run_environment, write_json

NUMBERS = {
    "repeats": 5,
    "steps": 4_000,
    "start": 1_000,  # steps before the first update
    "envs": 8,
    "batch": 32,
    "every": 4,  # steps an update
    "threads": 2,
    "rollout_steps": 8,  # ours only
}


def ours(options: argparse.Namespace, seed: int) -> float:
    """Steps per second of the example."""
    return steps_per_second(
        game=options.game,
        students="[net17]",
        td_coeff=0,
        total_steps=options.steps,
        warmup_steps=options.start,
        num_envs=options.envs,
        rollout_steps=options.rollout_steps,
        batch_size=options.batch,
        steps_per_update=options.every,
        threads=options.threads,
        n_step=1,
        replay_capacity=options.steps,
        seed=seed,
    )


def baseline(options: argparse.Namespace, seed: int) -> float:
    """Steps per second of the other program."""
    command = [sys.executable, str(options.baseline), "--seed", str(seed)]
    for name in ("game", "steps", "start", "envs", "batch", "every", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout.strip().splitlines()[-1])["steps_per_second"]


def main() -> None:
    """Alternate the two, print and save the speeds and the median ratio of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--game", default="road_runner")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    speeds: dict[str, list[float]] = {"torchrl_rtpd": [], "baseline": []}
    for seed in range(options.repeats):
        speeds["baseline"].append(baseline(options, seed))
        speeds["torchrl_rtpd"].append(ours(options, seed))
        print({name: f"{values[-1]:.1f}" for name, values in speeds.items()}, flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    pairs = zip(speeds["torchrl_rtpd"], speeds["baseline"], strict=True)
    result = {
        "unit": "agent steps a second",
        "speeds": speeds,
        "medians": medians,
        "ratio": statistics.median(ours / other for ours, other in pairs),
        "options": {key: str(value) for key, value in vars(options).items()},
        "environment": run_environment(),
    }
    print(json.dumps({"medians": medians, "ratio": result["ratio"]}))
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
