"""Random play through ``AtariVecEnv``, against ALE's own vector environment and TorchRL's wrapper of it.

    python tests/benchmarks/bench_env.py --out docs/results/env.json

Every alternative steps its own games and takes turns with the others. "stepping" is what TorchRL's collectors call,
``step_and_maybe_reset``; "collecting" is a collector with random actions, storage of the batch included.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, GymWrapper
from turns import median_ratio, parsed_options, take_turns

from torchrl_rtpd import AtariVecEnv
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.process import keep_freed_memory

NUMBERS = {"repetitions": 40, "envs": 32, "steps": 16, "threads": 2}


def raw_ale(options: argparse.Namespace) -> AtariVectorEnv:
    """ALE's own, with what ours asks of it."""
    return AtariVectorEnv(
        options.game,
        options.envs,
        num_threads=options.threads,
        reward_clipping=False,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )


def raw_stepping(options: argparse.Namespace) -> Callable[[], None]:
    """Random actions into ALE itself."""
    env = raw_ale(options)
    env.reset(seed=0)
    generator, num_actions = np.random.default_rng(0), int(env.single_action_space.n)

    def call() -> None:
        for _ in range(options.steps):
            env.step(generator.integers(num_actions, size=options.envs))

    return call


def stepping(options: argparse.Namespace, env: EnvBase) -> Callable[[], None]:
    """Random actions through TorchRL's interface."""
    env.set_seed(0)
    seen = {"now": env.reset()}
    generator, num_actions = np.random.default_rng(0), env.action_spec_unbatched.n  # the actions that ALE itself gets

    def call() -> None:
        for _ in range(options.steps):
            seen["now"].set("action", torch.from_numpy(generator.integers(num_actions, size=options.envs)))
            seen["now"] = env.step_and_maybe_reset(seen["now"])[1]

    return call


def collecting(options: argparse.Namespace, env: EnvBase) -> Callable[[], object]:
    """A rollout of a collector with random actions."""
    collector = Collector(env, frames_per_batch=options.envs * options.steps, total_frames=-1)
    batches = iter(collector)
    return lambda: next(batches)


def main() -> None:
    """Measure, print, save."""
    options = parsed_options(__doc__, NUMBERS, game="road_runner")
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # for all alternatives alike

    def ours() -> AtariVecEnv:
        return AtariVecEnv(options.game, options.envs, num_threads=options.threads, seed=0)

    def wrapped() -> GymWrapper:
        return GymWrapper(raw_ale(options), categorical_action_encoding=True)

    times = take_turns(
        {
            "ale": raw_stepping(options),
            "stepping": stepping(options, ours()),
            "collecting": collecting(options, ours()),
            "wrapper_stepping": stepping(options, wrapped()),
            "wrapper_collecting": collecting(options, wrapped()),
        },
        options.repetitions,
    )
    steps = options.envs * options.steps
    result = {
        "steps_per_second": {name: 1e3 * steps / statistics.median(values) for name, values in times.items()},
        "speed_of_ale": {name: median_ratio(times["ale"], values) for name, values in times.items()},
        "options": {"game": options.game, **{name: getattr(options, name) for name in NUMBERS}},
    }
    print(result)
    if options.out is not None:
        write_json(options.out, {**result, "environment": run_environment()})


if __name__ == "__main__":
    main()
