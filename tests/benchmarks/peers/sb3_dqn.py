"""stable-baselines3's DQN on the main benchmark's work, the teacher alone: for an environment that has it installed.

    python tests/benchmarks/peers/sb3_dqn.py --game road_runner --steps 4000 --start 1000

Its own Atari environments, network (the same Nature network) and replay, with as many games, updates and threads as
``bench_loop.py`` gives ours. Prints ``{"steps_per_second": ...}``, agent steps a second from the first update on.
"""

from __future__ import annotations

import argparse
import json
import time

import ale_py
import gymnasium
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

gymnasium.register_envs(ale_py)


class Clock(BaseCallback):
    """Notes when learning begins."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start, self.since = start, 0.0

    def _on_step(self) -> bool:
        if self.num_timesteps <= self.start:
            self.since = time.perf_counter()
        return True


def main() -> None:
    """Train, print the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="road_runner")
    numbers = {"steps": 4_000, "start": 1_000, "envs": 8, "batch": 32, "every": 4, "threads": 2, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = "".join(word.capitalize() for word in options.game.split("_"))
    env = VecFrameStack(make_atari_env(f"{name}NoFrameskip-v4", n_envs=options.envs, seed=options.seed), n_stack=4)
    model = DQN(
        "CnnPolicy",
        env,
        learning_rate=1e-4,
        buffer_size=options.steps,
        learning_starts=options.start,
        batch_size=options.batch,
        train_freq=1,
        gradient_steps=options.envs // options.every,
        target_update_interval=200 * options.every,
        exploration_fraction=1.0,
        exploration_final_eps=0.01,
        seed=options.seed,
        device="cpu",
    )
    clock = Clock(options.start)
    model.learn(options.steps, callback=clock)
    seconds = time.perf_counter() - clock.since
    speed = (model.num_timesteps - options.start) / seconds
    print(json.dumps({"steps_per_second": speed, "updates": model._n_updates}))


if __name__ == "__main__":
    main()
