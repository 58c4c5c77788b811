"""Training speed of a replay-free teacher and its student against programs that do the same work, in one run.

    python tests/benchmarks/bench_pqn.py --out docs/results/pqn.json
    python tests/benchmarks/bench_pqn.py --cleanrl CHECKOUT --cleanrl_python PYTHON ...   CleanRL's PQN on EnvPool, too

Ours (``pqn_ours.py``) and the plain loop (``pqn_by_hand.py``) train a teacher with norms over channels and one student
by its divergence; that both then learn the same from the same minibatch is tested in ``tests/test_benchmarks.py``.
CleanRL's script trains a teacher alone, and so does ours once more beside it. It is run as it is, by the Python of an
environment that its requirements were installed in. All play the same game with as many slots, steps a rollout,
minibatches, epochs and threads. Programs alternate. Speeds leave out the first rollout, and are given by the clock and
by the time that the program's threads had a processor, which a busy machine disturbs less. The memory of a teacher and
five students at 128 slots by 32 steps is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turns import median_ratio

from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NUMBERS = {"repeats": 5, "rollouts": 3, "threads": 2, "memory_envs": 128, "memory_rollouts": 2}
SIZES = {  # slots, steps a rollout, minibatch and epochs: CleanRL's own, and one for more games at once
    "8 x 128": {"envs": 8, "rollout": 128, "batch": 256, "epochs": 4},
    "32 x 32": {"envs": 32, "rollout": 32, "batch": 256, "epochs": 4},
}
FLEET = "net1,net2,net3,net5,net17"
SPEEDS = ("steps_per_second", "steps_per_cpu_second")
PROGRAMS = {
    "ours": ["pqn_ours.py"],
    "plain": ["pqn_by_hand.py"],
    "plain_kept": ["pqn_by_hand.py", "--keep_freed_memory"],
    "ours_alone": ["pqn_ours.py", "--students", ""],
}
Speeds = dict[str, dict[str, list[float]]]


def words(numbers: dict[str, Any]) -> list[str]:
    """Numbers as arguments of a command."""
    return [word for name, number in numbers.items() for word in (f"--{name}", str(number))]


def run(program: Sequence[str], options: argparse.Namespace, **numbers: Any) -> dict[str, float]:
    """What one of our programs prints at its end."""
    command = [sys.executable, str(HERE / program[0]), *program[1:], "--game", options.game]
    command += words({"threads": options.threads, **numbers})
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_cleanrl(options: argparse.Namespace, seed: int, size: dict[str, int]) -> dict[str, float]:
    """Speeds of CleanRL's script, by the clock and processor time at the lines that it prints after each rollout."""
    steps = size["envs"] * size["rollout"]
    name = "".join(word.capitalize() for word in options.game.split("_"))
    command = [options.cleanrl_python, "cleanrl/pqn_atari_envpool.py", "--no-cuda", "--env-id", f"{name}-v5"]
    command += ["--seed", str(seed + 1), "--num-envs", str(size["envs"]), "--num-steps", str(size["rollout"])]
    command += ["--num-minibatches", str(steps // size["batch"]), "--update-epochs", str(size["epochs"])]
    command += ["--total-timesteps", str(options.rollouts * steps)]
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command,
        cwd=options.cleanrl,
        env={**environment, **threads, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        marks = [(time.perf_counter(), cpu_seconds(process.pid)) for line in process.stdout if line.startswith("SPS:")]
    if process.returncode or len(marks) != options.rollouts:
        raise RuntimeError(f"{' '.join(command)} in {options.cleanrl} failed or printed no speeds; run it by hand.")
    taken = [end - begin for begin, end in zip(marks[0], marks[-1], strict=True)]
    return dict(zip(SPEEDS, ((options.rollouts - 1) * steps / seconds for seconds in taken), strict=True))


def cpu_seconds(process: int) -> float:
    """Processor time of a running process and its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(options: argparse.Namespace, size: dict[str, int]) -> Speeds:
    """Speeds of all programs by kind of speed, round by round."""
    found: Speeds = {kind: {} for kind in SPEEDS}
    for seed in range(options.repeats):
        numbers = {**size, "steps": options.rollouts * size["envs"] * size["rollout"], "seed": seed}
        speeds = {name: run(program, options, **numbers) for name, program in PROGRAMS.items()}
        if options.cleanrl is not None:
            speeds["cleanrl"] = run_cleanrl(options, seed, size)
        for kind, by_name in found.items():
            for name, result in speeds.items():
                by_name.setdefault(name, []).append(result[kind])
        print(size, {name: f"{result[SPEEDS[0]]:.1f}" for name, result in speeds.items()}, os.getloadavg(), flush=True)
    return found


def summary(speeds: Speeds) -> dict[str, Any]:
    """Medians and ratios of ours: to the plain loop with a student, to CleanRL's script without."""
    over = {"plain": "ours", "plain_kept": "ours", "cleanrl": "ours_alone"}
    result: dict[str, Any] = {}
    for kind, by_name in speeds.items():
        medians = {name: statistics.median(values) for name, values in by_name.items()}
        ratios = {name: median_ratio(by_name[mine], by_name[name]) for name, mine in over.items() if name in by_name}
        result[kind] = {"runs": by_name, "medians": medians, "ours_over": ratios}
    return result


def main() -> None:
    """Alternate the programs, print and save their speeds and ours over each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--cleanrl", type=Path, help="a checkout of CleanRL; without it its script is left out")
    parser.add_argument("--cleanrl_python", default="python", help="of an environment with its requirements")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.cleanrl is None:
        print("CleanRL's script is left out: give a checkout of it with --cleanrl.")
    load = os.getloadavg()[0]
    sizes = {name: {**SIZES[name], **summary(measured(options, SIZES[name]))} for name in options.sizes}
    memory = {"envs": options.memory_envs, "rollout": 32, "batch": 128, "epochs": 1, "seed": 0}
    fleet = ["pqn_ours.py", "--students", FLEET]
    held = run(fleet, options, **memory, steps=32 * options.memory_envs * options.memory_rollouts)["resident_gb_most"]
    result = {
        "sizes": sizes,
        "memory": {**memory, "students": FLEET.split(","), "resident_gb_most": held},
        "load": [load, os.getloadavg()[0]],
        "options": {name: getattr(options, name) for name in ("game", "repeats", "rollouts", "threads")},
        "environment": run_environment(),
    }
    for name, size in sizes.items():
        print(name, {kind: size[kind]["ours_over"] for kind in SPEEDS})
    print(f"teacher and five students: {held:.2f} GB")
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
