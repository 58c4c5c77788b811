"""Random play through ``AtariVecEnv``, against ALE's own vector environment and TorchRL's wrapper of it.

    python tests/benchmarks/bench_env.py --out docs/results/env.json
    python tests/benchmarks/bench_env.py --out docs/results/env.json --repetitions 0  # the second part alone

Every alternative steps its own games and takes turns with the others. "stepping" is what TorchRL's collectors call,
``step_and_maybe_reset``; "collecting" is a collector with random actions, storage of the batch included.

Then ALE, ``AtariVecEnv`` and, where it is installed, EnvPool play 8 to 256 games with 1, 2 and all threads, step by
step; and the parts of a single game are timed. Processor time is kept as well: it is the sum over all threads, and
another program that runs meanwhile changes it little.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from ale_py import ALEInterface, LoggerMode, roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, GymWrapper
from turns import median_ratio, parsed_options, take_turns

from torchrl_rtpd import AtariVecEnv
from torchrl_rtpd.runs.environment import run_environment
from torchrl_rtpd.runs.metrics import write_json
from torchrl_rtpd.runs.process import keep_freed_memory

NUMBERS = {"repetitions": 40, "envs": 32, "steps": 16, "threads": 2, "most_games": 256, "sweep_steps": 100}
GAMES_AT_ONCE = (8, 32, 64, 128, 256)
SINGLE_GAMES = ("pong", "breakout", "road_runner")


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


def envpool_stepping(options: argparse.Namespace) -> Callable[[], None]:
    """Random actions into EnvPool, with what ours asks of ALE; a game that ends begins again one step later."""
    import envpool

    name = "".join(word.capitalize() for word in options.game.split("_")) + "-v5"
    env = envpool.make(name, env_type="gymnasium", num_envs=options.envs, num_threads=options.threads, seed=0)
    env.reset()
    generator, num_actions = np.random.default_rng(0), int(env.action_space.n)

    def call() -> None:
        for _ in range(options.steps):
            env.step(generator.integers(num_actions, size=options.envs))

    return call


class ProcessorTime:
    """A call whose processor time is kept.

    Args:
        call: what to time.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.ms: list[float] = []

    def __call__(self) -> None:
        before = time.process_time()
        self._call()
        self.ms.append(1e3 * (time.process_time() - before))


def ours(options: argparse.Namespace) -> AtariVecEnv:
    """The package's environment."""
    return AtariVecEnv(options.game, options.envs, num_threads=options.threads, seed=0)


def engines() -> dict[str, Callable[[argparse.Namespace], Callable[[], None]]]:
    """Makers of a call that steps once, by the engine's name."""
    found: dict[str, Callable[[argparse.Namespace], Callable[[], None]]] = {
        "ale": raw_stepping,
        "ours": lambda options: stepping(options, ours(options)),
    }
    if importlib.util.find_spec("envpool") is None:
        print("EnvPool is left out: it is not installed.")
    else:
        found["envpool"] = envpool_stepping
    return found


def sweep(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every engine, number of games and number of threads; every call is one step of all games."""
    makers = engines()
    for games in (games for games in GAMES_AT_ONCE if games <= options.most_games):
        for threads in sorted({1, 2, os.cpu_count() or 1}):
            size = argparse.Namespace(game=options.game, envs=games, threads=threads, steps=1)
            calls = {name: ProcessorTime(make(size)) for name, make in makers.items()}
            times = take_turns(calls, options.sweep_steps, warmup=10)
            for name, values in times.items():
                row = {
                    "engine": name,
                    "games": games,
                    "threads": threads,
                    "steps_per_second": 1e3 * games / statistics.median(values),
                    "ms": {str(percent): float(np.percentile(values, percent)) for percent in (50, 99)},
                    "processor_ms": statistics.median(calls[name].ms[-options.sweep_steps :]),
                    "speed_of_ale": median_ratio(times["ale"], values),
                }
                print(row, flush=True)
                yield row


def one_game(game: str, slots: int = 8) -> dict[str, float]:
    """Processor milliseconds of one game's parts: a step and its emulation, a new game, opening, a seed's first game.

    Args:
        game: ALE's name.
        slots: games over which the mean is taken; they take turns in one thread.
    """
    size = argparse.Namespace(game=game, envs=slots, threads=1, steps=50)
    made: list[AtariVectorEnv] = []
    opening = processor_ms(lambda: made.append(raw_ale(size)))
    first = processor_ms(lambda: made[0].reset(seed=0))
    again = [processor_ms(made[0].reset) for _ in range(5)]
    playing = ProcessorTime(raw_stepping(size))
    for _ in range(5):
        playing()
    return {
        "step": statistics.median(playing.ms) / size.steps / slots,
        "four_frames": emulation_ms(game),
        "new_game": statistics.mean(again) / slots,
        "opening": opening / slots,
        "first_game_of_a_seed": first / slots,
    }


def processor_ms(call: Callable[[], object]) -> float:
    """Processor milliseconds of one call."""
    timed = ProcessorTime(call)
    timed()
    return timed.ms[0]


def emulation_ms(game: str, steps: int = 400) -> float:
    """Processor milliseconds of four frames in the emulator alone, whose screen nobody reads."""
    ALEInterface.setLoggerMode(LoggerMode.Error)
    emulator = ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(roms.get_rom_path(game))
    actions, generator = emulator.getMinimalActionSet(), np.random.default_rng(0)

    def play() -> None:
        action = actions[generator.integers(len(actions))]
        for _ in range(4):
            emulator.act(action)

    timed = ProcessorTime(play)
    for _ in range(steps):
        timed()
        if emulator.game_over():
            emulator.reset_game()
    return statistics.median(timed.ms)


def beside_torch(options: argparse.Namespace, games: int = 64) -> dict[str, float]:
    """Processor milliseconds of ALE's step after torch has copied the frames, by torch's number of threads.

    The copy itself is not counted. Threads of torch that wait for more work do so in a loop for a while.
    """
    games = min(games, options.most_games)
    env = raw_ale(argparse.Namespace(game=options.game, envs=games, threads=options.threads))
    pixels = torch.from_numpy(env.reset(seed=0)[0])
    copied, timed = torch.empty_like(pixels), {count: ProcessorTime(lambda: env.step(idle)) for count in (1, 2)}
    idle = np.zeros(games, dtype=np.int64)
    for _ in range(options.sweep_steps):
        for count, call in timed.items():
            torch.set_num_threads(count)
            copied.copy_(pixels)
            call()
    return {str(count): statistics.median(call.ms) for count, call in timed.items()}


def alternatives(options: argparse.Namespace) -> dict[str, Any]:
    """Ways to step and to collect, at one number of games."""

    def wrapped() -> GymWrapper:
        return GymWrapper(raw_ale(options), categorical_action_encoding=True)

    times = take_turns(
        {
            "ale": raw_stepping(options),
            "stepping": stepping(options, ours(options)),
            "collecting": collecting(options, ours(options)),
            "wrapper_stepping": stepping(options, wrapped()),
            "wrapper_collecting": collecting(options, wrapped()),
        },
        options.repetitions,
    )
    steps = options.envs * options.steps
    return {
        "steps_per_second": {name: 1e3 * steps / statistics.median(values) for name, values in times.items()},
        "speed_of_ale": {name: median_ratio(times["ale"], values) for name, values in times.items()},
    }


def by_number(options: argparse.Namespace) -> dict[str, Any]:
    """Games by their number and by threads, and the parts of one, with the load of the machine before and after."""
    before = os.getloadavg()[0]
    found = {
        "one_game_ms": {game: one_game(game) for game in SINGLE_GAMES},
        "sweep": list(sweep(options)),
        "beside_torch_ms": beside_torch(options),
    }
    torch.set_num_threads(options.threads)
    load = [before, os.getloadavg()[0]]
    named = {name: getattr(options, name) for name in ("game", "most_games", "sweep_steps")}
    return {**found, "options": {**named, "load": load}, "environment": run_environment()}


def main() -> None:
    """Measure, print, save; a part that has no repetitions or steps stays as the file has it."""
    options = parsed_options(__doc__, NUMBERS, game="road_runner")
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # for all alternatives alike
    known = options.out is not None and options.out.exists()
    result: dict[str, Any] = json.loads(options.out.read_text()) if known else {}
    if options.repetitions:
        named = {name: getattr(options, name) for name in ("game", "repetitions", "envs", "steps", "threads")}
        result |= {**alternatives(options), "options": named, "environment": run_environment()}
    if options.sweep_steps:
        result["games"] = by_number(options)
    print(result)
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
