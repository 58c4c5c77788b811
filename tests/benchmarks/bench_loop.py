"""Training speed of the main example against programs that do the same work, in one run.

    python tests/benchmarks/bench_loop.py --out docs/results/speed.json
    python tests/benchmarks/bench_loop.py --peers .tox/peers/bin/python ...   stable-baselines3, too

All play the same game with as many slots, the same batch, updates a step and threads. Ours and the plain loop, which is
``examples/by_hand.py`` itself, train a teacher and one student by its divergence alone; that both then learn the same
from the same minibatch is tested in ``tests/examples/test_by_hand.py``. The peers train the teacher alone. Programs
alternate, so that a machine that slows down slows all of them; speeds are agent steps a second from the first update
on, and only their ratios mean something elsewhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from main_example import ROOT, steps_per_second
from turns import median_ratio

from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json

NUMBERS = {
    "repeats": 5,
    "steps": 2_600,
    "start": 1_000,  # steps before the first update
    "envs": 8,
    "batch": 32,
    "every": 4,  # steps an update
    "threads": 2,
    "rollout_steps": 8,  # ours only
}
HERE = Path(__file__).parent
VARIANTS = {
    "ours": {},
    "ours_short": {"rollout_steps": 1},  # so that overlap concerns every step
    "ours_short_overlap": {"rollout_steps": 1, "overlap": True},
}
BFLOAT16 = "ours_bfloat16"  # one round only on a CPU without instructions for it, where it is many times slower
BY_HAND = ROOT / "examples" / "by_hand.py"
ALONE = ["--td", "0", "--games", "0"]  # the divergence alone, no games at the end
KEEP = f"""import runpy, sys
from torchrl_rtpd.runs.process import keep_freed_memory
keep_freed_memory()
sys.argv = ["by_hand.py", *sys.argv[1:]]
runpy.run_path({str(BY_HAND)!r}, run_name="__main__")"""
OTHERS = {
    "plain": [sys.executable, str(BY_HAND), *ALONE],
    "plain_kept": [sys.executable, "-c", KEEP, *ALONE],  # keeps freed memory, as the main example does
    "torchrl_stock": [sys.executable, str(HERE / "peers" / "torchrl_stock.py")],
}


def ours(options: argparse.Namespace, seed: int, **overrides: object) -> float:
    """Steps per second of the example."""
    settings = {
        "game": options.game,
        "students": "[net17]",
        "td_coeff": 0,
        "total_steps": options.steps,
        "warmup_steps": options.start,
        "num_envs": options.envs,
        "rollout_steps": options.rollout_steps,
        "batch_size": options.batch,
        "steps_per_update": options.every,
        "threads": options.threads,
        "n_step": 1,
        "replay_capacity": options.steps,
        "seed": seed,
    }
    return steps_per_second(**{**settings, **overrides})


def other(command: list[str], options: argparse.Namespace, seed: int) -> float:
    """Steps per second of another program."""
    command = [*command, "--seed", str(seed)]
    for name in ("game", "steps", "start", "envs", "batch", "every", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout.strip().splitlines()[-1])["steps_per_second"]


def ratios(speeds: dict[str, list[float]], mine: str) -> dict[str, float]:
    """Median over rounds of one program's speed over each one's, as far as both have run."""
    rounds = {name: min(len(values), len(speeds[mine])) for name, values in speeds.items()}
    return {name: median_ratio(speeds[mine][: rounds[name]], values[: rounds[name]]) for name, values in speeds.items()}


def main() -> None:
    """Alternate the programs, print and save their speeds and ours over each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the python of an environment with stable-baselines3")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--game", default="road_runner")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    others = dict(OTHERS)
    if options.peers:
        others["stable_baselines3"] = [options.peers, str(HERE / "peers" / "sb3_dqn.py")]
    speeds: dict[str, list[float]] = {name: [] for name in (*VARIANTS, *others)}
    environment = run_environment()
    for seed in range(options.repeats):
        for name, overrides in VARIANTS.items():
            speeds[name].append(ours(options, seed, **overrides))
        if not seed or environment["cpu"].endswith("with bfloat16"):
            speeds.setdefault(BFLOAT16, []).append(ours(options, seed, amp=True))
        for name, command in others.items():
            speeds[name].append(other(command, options, seed))
        print({name: f"{values[-1]:.1f}" for name, values in speeds.items() if len(values) > seed}, flush=True)
    result = {
        "unit": "agent steps a second",
        "speeds": speeds,
        "medians": {name: statistics.median(values) for name, values in speeds.items()},
        "ours_over": ratios(speeds, "ours"),
        "bfloat16_over": ratios(speeds, BFLOAT16),
        "options": {key: str(value) for key, value in vars(options).items() if key != "peers"},
        "environment": environment,
    }
    print(json.dumps({key: result[key] for key in ("medians", "ours_over", "bfloat16_over")}))
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
