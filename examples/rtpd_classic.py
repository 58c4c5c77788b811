"""The main example on classic control: real-time policy distillation and its baselines in a minute on one CPU core.

    python examples/rtpd_classic.py
    python examples/rtpd_classic.py game=acrobot method=two_stage seed=3
    python examples/rtpd_classic.py teacher=pqn

Everything but games and networks is that of rtpd_atari.py: keys, methods, budget, and what a run leaves behind. The
keys are explained by --help.
"""

from __future__ import annotations

import re

import gymnasium
import hydra
import torch
from command import launched
from gymnasium.vector import AutoresetMode
from rtpd_atari import run
from settings import Config
from tasks import Task
from torch import nn
from torchrl.data import LazyTensorStorage, MultiStep, TensorDictReplayBuffer
from torchrl.envs import EnvBase, GymWrapper, RewardSum
from torchrl.modules import QValueActor

GAMES = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1"}
LADDER = tuple(f"mlp{units}" for units in (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96))


def check_names(config: Config) -> None:
    """Refuse a game or a network that there is not."""
    if config.game not in GAMES:
        raise ValueError(f"game must be one of {', '.join(GAMES)}: got {config.game!r}.")
    for name in config.students:
        units_of(name)
    atari = {"overlap": False, "single_frames": False, "amp": False, "env_threads": None}
    given = [f"{key}={getattr(config, key)}" for key, unused in atari.items() if getattr(config, key) != unused]
    if given:
        raise ValueError(f"keys of Atari games have no use here: got {', '.join(given)}; leave them out.")
    if "onnx_int8" in config.export:
        raise ValueError("export=onnx_int8 is for students that read raw bytes: got observations in float32; use onnx.")


def units_of(name: str) -> int:
    """Units of both hidden layers: 256 of the teacher, 16 of mlp16."""
    if name == "teacher":
        return 256
    if not re.fullmatch(r"mlp[1-9]\d{0,3}", name):
        raise ValueError(f"students are called teacher, or mlp and their units, such as mlp16: got {name!r}.")
    return int(name.removeprefix("mlp"))


def make_env(config: Config, slots: int, *, seed: int | None = None, evaluation: bool = False) -> EnvBase:
    """Games side by side; the time limit of each is gymnasium's, 500 steps."""
    # GymEnv(..., num_envs=slots) would reset one step late and mix up the transitions around it.
    same_step, drawn = {"autoreset_mode": AutoresetMode.SAME_STEP}, "rgb_array" if evaluation else None
    games = gymnasium.make_vec(GAMES[config.game], slots, "sync", vector_kwargs=same_step, render_mode=drawn)
    env = GymWrapper(games, categorical_action_encoding=True).append_transform(RewardSum())
    if seed is not None:
        env.set_seed(seed)
    return env


def make_mlp(config: Config, name: str, env: EnvBase, seed: int) -> QValueActor:
    """Two hidden layers. Drawing the weights leaves the random stream of training alone."""
    units, inputs, actions = units_of(name), env.observation_spec["observation"].shape[-1], env.action_spec.space.n
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for size in (inputs, units):
            layers += [nn.Linear(size, units), *([nn.LayerNorm(units)] if config.norm == "layer" else []), nn.ReLU()]
        layers.append(nn.Linear(units, actions))
    return QValueActor(nn.Sequential(*layers), in_keys=["observation"], spec=env.action_spec_unbatched).to(
        config.device
    )


def make_storage(config: Config, size: int) -> LazyTensorStorage:
    """Whole transitions: observations are small here."""
    return LazyTensorStorage(size, device=config.device)


def make_replay(config: Config, storage: LazyTensorStorage) -> TensorDictReplayBuffer:
    """DQN's, as TorchRL has it."""
    return TensorDictReplayBuffer(storage=storage, batch_size=config.batch_size)


def make_postproc(config: Config) -> MultiStep | None:
    """Returns over several steps, within the batches collected, where they are learned from."""
    if config.n_step is None:
        return None
    postproc = MultiStep(gamma=config.gamma, n_steps=config.n_step)
    postproc.done_keys = ("done",)  # move "terminated" on, too: else games that end within the steps look endless
    return postproc


CLASSIC = Task(check_names, make_env, make_mlp, make_storage, make_replay, make_postproc, "terminated", LADDER)


@hydra.main(config_path="config", config_name="rtpd_classic", version_base="1.3")
def main(config: Config) -> None:
    """Run with the resolved configuration."""
    launched(run, config, CLASSIC)


if __name__ == "__main__":
    main()
