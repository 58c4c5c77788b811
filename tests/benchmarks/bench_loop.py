"""Training speed of the main example against programs that do the same work, alone and beside a busy neighbour.

    python tests/benchmarks/bench_loop.py --out docs/results/speed.json
    python tests/benchmarks/bench_loop.py --against CHECKOUT ...   an older commit of ours as well
    python tests/benchmarks/bench_loop.py --peers PYTHON ...   stable-baselines3 as well
    python tests/benchmarks/bench_loop.py --cleanrl CHECKOUT --cleanrl_python PYTHON ...   CleanRL as well

In the task ``student`` all programs play the same game with the same batch, updates a step and threads. Ours and the
plain loop, which is ``examples/by_hand.py`` itself, train a teacher and one student by its divergence alone; that both
then learn the same from the same minibatch is tested in ``tests/examples/test_by_hand.py``. The peers train the teacher
alone, with as many games at once as ours; CleanRL's script can play only one. The tasks ``quick``, the preset as it is
but shorter, and ``fleet``, the paper's loss with six students, compare ours with the older commit. Each task is timed
alone, and our programs and the plain loop beside a process that computes without end in one thread as well
(``neighbours.py``). Programs alternate, so that a
machine that slows down slows all of them; speeds are agent steps a second from the first update on, and only their
ratios mean something elsewhere. The file is written after every round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from main_example import ROOT, known_keys, steps_per_second
from neighbours import neighbour
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
TASKS: dict[str, dict[str, object]] = {
    "student": {"students": "[net17]", "td_coeff": 0, "student_updates": 1, "n_step": 1},
    "quick": {"students": "[net1,net17]", "td_coeff": 1, "student_updates": 1},
    "fleet": {"students": "[net1,net2,net3,net4,net5,net17]", "td_coeff": 1, "student_updates": 1, "n_step": 1},
}
"""Keys of the main example. All but those of ``quick``, which has its preset's, are completed by the numbers above."""
NEIGHBOURS = {"none": None, "10": 10, "0": 0}
"""Niceness of the neighbour."""
HERE = Path(__file__).parent
BESIDE: dict[str, object] = {"threads": 1, "concurrent": True}  # what threads=auto takes of two processors
VARIANTS: dict[str, dict[str, object]] = {
    "ours": BESIDE,
    "ours_in_turn": {"concurrent": False},  # students after their teacher, all threads for each
    "ours_short": {**BESIDE, "rollout_steps": 1},  # so that overlap concerns every step
    "ours_short_overlap": {**BESIDE, "rollout_steps": 1, "overlap": True},
    "ours_bfloat16": {
        **BESIDE,
        "amp": True,
    },  # left out on a CPU without instructions for it, where it is many times slower
}
"""Keys that a program of ours has on top of those of the task."""
EVERYWHERE = ("ours", "ours_in_turn", "before")
"""Programs of all tasks and situations."""
BESIDE_NEIGHBOURS = (*EVERYWHERE, "plain")
"""Programs of ``student`` that are timed beside a neighbour as well; all others are timed alone."""
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
Speeds = dict[str, dict[str, dict[str, list[float]]]]
"""Task, neighbour, program: a speed a round."""


def task_keys(task: str, options: argparse.Namespace, seed: int) -> dict[str, object]:
    """Keys of the main example for a task."""
    keys = {"game": options.game, "seed": seed, "threads": options.threads}
    keys |= {"total_steps": options.steps, "warmup_steps": options.start}
    if task != "quick":
        keys |= {
            "num_envs": options.envs,
            "rollout_steps": options.rollout_steps,
            "batch_size": options.batch,
            "steps_per_update": options.every,
            "replay_capacity": options.steps,
        }
    return keys | TASKS[task]


def ours(task: str, overrides: Mapping[str, object], options: argparse.Namespace, seed: int) -> float:
    """Steps per second of the example."""
    return steps_per_second(**{**task_keys(task, options, seed), **overrides})


def before(task: str, options: argparse.Namespace, seed: int) -> float:
    """Steps per second of the example of the other checkout."""
    return steps_per_second(options.against, **task_keys(task, options, seed))


def other(command: list[str], options: argparse.Namespace, seed: int) -> float:
    """Steps per second of another program."""
    command = [*command, "--seed", str(seed)]
    for name in ("game", "steps", "start", "envs", "batch", "every", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])["steps_per_second"]


def programs(task: str, options: argparse.Namespace, bfloat16: bool) -> dict[str, Callable[[int], float]]:
    """Programs of a task by name; called with a seed, each runs and returns its speed.

    Args:
        task: key of ``TASKS``.
        options: the command line.
        bfloat16: whether the CPU has instructions for it.
    """
    found: dict[str, Callable[[int], float]] = {}
    for name, overrides in VARIANTS.items():
        if bfloat16 or not overrides.get("amp"):
            found[name] = partial(ours, task, overrides, options)
    if options.against is not None:
        found["before"] = partial(before, task, options)
    others = dict(OTHERS)
    if options.peers is not None:
        others["stable_baselines3"] = [options.peers, str(HERE / "peers" / "sb3_dqn.py")]
    if options.cleanrl is not None:
        script = [options.cleanrl_python, str(HERE / "peers" / "cleanrl_dqn.py")]
        others["cleanrl"] = [*script, "--cleanrl", str(options.cleanrl.resolve())]
    found |= {name: partial(other, command, options) for name, command in others.items()}
    return {name: call for name, call in found.items() if task == "student" or name in EVERYWHERE}


def timed(names: Iterable[str], niceness: str) -> list[str]:
    """Names of those programs that are timed beside a neighbour, or alone."""
    return [name for name in names if niceness == "none" or name in BESIDE_NEIGHBOURS]


def in_order(names: list[str], turn: int) -> list[str]:
    """Names, each round beginning with the next one."""
    first = turn % len(names)
    return names[first:] + names[:first]


def summary(speeds: Speeds) -> dict[str, Any]:
    """Speeds, their medians, and medians over rounds of ours over each program."""
    result: dict[str, Any] = {"speeds": speeds, "medians": {}, "ours_over": {}}
    for task, situations in speeds.items():
        for niceness, found in situations.items():
            medians = {name: statistics.median(values) for name, values in found.items()}
            ratios = {name: median_ratio(found["ours"], values) for name, values in found.items()}
            result["medians"].setdefault(task, {})[niceness] = medians
            result["ours_over"].setdefault(task, {})[niceness] = ratios
    return result


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="an older checkout of this repository")
    parser.add_argument("--peers", help="the python of an environment with stable-baselines3")
    parser.add_argument("--cleanrl", type=Path, help="a checkout of CleanRL")
    parser.add_argument("--cleanrl_python", default="python", help="of an environment with CleanRL's requirements")
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument(
        "--neighbour", nargs="+", choices=list(NEIGHBOURS), default=["none", "10"], help="its niceness, one or several"
    )
    parser.add_argument("--out", type=Path, help="a JSON file, written after every round")
    parser.add_argument("--game", default="road_runner")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.against is not None:
        options.against = options.against.resolve()
        keys = {key for task in options.task for key in task_keys(task, options, 0)}
        print(f"keys that {options.against} does not know: {sorted(keys - known_keys(options.against)) or 'none'}")
    return options


def commit(checkout: Path) -> str:
    """Ten digits of a checkout's commit."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Alternate the programs, print and save their speeds and ours over each."""
    options = parsed()
    environment = run_environment()
    named = ("game", "task", "neighbour", *NUMBERS)
    result: dict[str, Any] = {
        "unit": "agent steps a second",
        "load": [os.getloadavg()],
        "options": {name: getattr(options, name) for name in named},
        "environment": environment,
        "against": None if options.against is None else commit(options.against),
    }
    calls = {task: programs(task, options, environment["cpu"].endswith("with bfloat16")) for task in options.task}
    speeds: Speeds = {}
    for seed in range(options.repeats):
        for task in options.task:
            for niceness in options.neighbour:
                names = timed(calls[task], niceness)
                with neighbour(NEIGHBOURS[niceness]):
                    found = {name: calls[task][name](seed) for name in in_order(names, seed)}
                kept = speeds.setdefault(task, {}).setdefault(niceness, {name: [] for name in names})
                for name, speed in found.items():
                    kept[name].append(speed)
                print(task, niceness, {name: round(speed, 1) for name, speed in found.items()}, flush=True)
                result = {**result, **summary(speeds), "load": [result["load"][0], os.getloadavg()]}
                if options.out is not None:
                    write_json(options.out, result)
    print(json.dumps({key: result[key] for key in ("medians", "ours_over")}))


if __name__ == "__main__":
    main()
