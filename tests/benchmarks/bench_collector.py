"""Cost of collecting through the dual-network collector, against a plain loop over ALE's own vector environment.

    python tests/benchmarks/bench_collector.py --out docs/results/collector.json

Every alternative steps its own 32 games with the paper's teacher acting and takes turns with the others, a rollout at a
time: ALE alone with the same network; the collector; the collector with six students that neither act nor record; the
collector recording the teacher's and net1's values; and, since that needs it, net1's forward pass alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torch import nn
from turns import median_ratio, parsed_options, take_turns

from torchrl_rtpd import AtariVecEnv, DualNetworkCollector, make_actor
from torchrl_rtpd.networks.towers import TOWERS
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json

NUMBERS = {"repetitions": 60, "envs": 32, "rollout_steps": 8, "threads": 2}


def plain_loop(options: argparse.Namespace, network: nn.Module) -> Callable[[], None]:
    """A rollout by hand: the network on ALE's frames, nothing stored."""
    env = AtariVectorEnv(
        options.game,
        options.envs,
        num_threads=options.threads,
        autoreset_mode=AutoresetMode.SAME_STEP,
        reward_clipping=False,
    )
    seen = {"pixels": torch.from_numpy(env.reset(seed=0)[0])}

    def call() -> None:
        for _ in range(options.rollout_steps):
            with torch.no_grad():
                action = network(seen["pixels"]).argmax(-1)
            seen["pixels"] = torch.from_numpy(env.step(action.numpy())[0])

    return call


def collector_loop(options: argparse.Namespace, students: list[str], **kwargs: Any) -> Callable[[], None]:
    """A rollout of the collector."""
    env = AtariVecEnv(options.game, options.envs, num_threads=options.threads, seed=0)
    collector = DualNetworkCollector(
        env,
        make_actor("teacher", env.action_spec, seed=0),
        {name: make_actor(name, env.action_spec, seed=0) for name in students} or None,
        frames_per_batch=options.envs * options.rollout_steps,
        total_frames=-1,
        **kwargs,
    )
    iterator = iter(collector)
    return lambda: next(iterator)


def extra_forward(options: argparse.Namespace, student: str) -> Callable[[], None]:
    """The student's forward passes of a rollout."""
    env = AtariVecEnv(options.game, options.envs, num_threads=options.threads, seed=0)
    network, seen = make_actor(student, env.action_spec, seed=0), env.reset().select("pixels")
    env.close()

    def call() -> None:
        for _ in range(options.rollout_steps):
            with torch.no_grad():
                network(seen.copy())

    return call


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds a rollout of each alternative, and the ratios the docs speak of."""
    env = AtariVecEnv(options.game, 1)
    network = make_actor("teacher", env.action_spec, seed=0).module[0].module
    env.close()
    students = [name for name in TOWERS if name != "teacher"]
    times = take_turns(
        {
            "plain": plain_loop(options, network),
            "teacher": collector_loop(options, []),
            "idle_students": collector_loop(options, students),
            "recording": collector_loop(options, ["net1"], record=True),
            "forward": extra_forward(options, "net1"),
        },
        options.repetitions,
    )
    turns = zip(times["recording"], times["teacher"], times["forward"], strict=True)
    recording = [(with_values - without) / forward for with_values, without, forward in turns]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "medians_ms": medians,
        "speed_of_plain": median_ratio(times["plain"], times["teacher"]),
        "cost_of_idle_students": median_ratio(times["idle_students"], times["teacher"]) - 1,
        "recording_over_extra_forward": statistics.median(recording),
        "idle_students": len(students),
    }


def main() -> None:
    """Measure, print, save."""
    options = parsed_options(__doc__, NUMBERS, game="road_runner")
    torch.set_num_threads(options.threads)
    result = compared(options)
    print(result)
    if options.out is not None:
        numbers = {name: getattr(options, name) for name in ("game", *NUMBERS)}
        write_json(options.out, {**result, "options": numbers, "environment": run_environment()})


if __name__ == "__main__":
    main()
