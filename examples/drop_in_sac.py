"""A stock TorchRL ``SACTrainer`` that gets a far smaller student, by the lines marked ``# added``.

    python examples/drop_in_sac.py
    python examples/drop_in_sac.py --seed 1 --out results/drop_in_sac

The student learns from the very minibatches its teacher learns from: the exact KL between the two tanh-Gaussian
policies, Eq. 1 of Sun & Fazli 2019 (https://arxiv.org/abs/1912.12630) with an integral for the sum. A few
minutes on two CPU cores. Runs of three seeds: docs/students.md; in some a few of the 50 games fail, for both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from scoreboard import begin, report
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer, TensorSpec
from torchrl.envs import EnvBase, GymEnv, RewardSum, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate
from torchrl.trainers import LRSchedulerHook
from torchrl.trainers.algorithms.sac import SACTrainer

from torchrl_rtpd import ContinuousDistillationLoss, RealTimeDistillTrainer  # added

GAME = "Pendulum-v1"
EPISODE_STEPS = 200  # of every game; each costs at most 16.3, and nothing once the pendulum stands
STEPS_PER_BATCH = 200  # agent steps
UPDATES_PER_BATCH = 100


def make_env() -> EnvBase:
    """One pendulum, its return so far under the key that SACTrainer logs."""
    return TransformedEnv(GymEnv(GAME), RewardSum(in_keys=["reward"], out_keys=["reward_sum"]))


def make_actor(units: int, action_spec: TensorSpec, *, seed: int) -> ProbabilisticActor:
    """A tanh-Gaussian policy over the action's range."""
    layers = make_layers(3, units, 2, seed=seed).append(NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(layers, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=action_spec,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": action_spec.space.low, "high": action_spec.space.high},
    )


def make_layers(features: int, units: int, outputs: int, *, seed: int) -> nn.Sequential:
    """Two hidden layers of ``units``. Drawing the weights leaves the random stream of training alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = [nn.Linear(features, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU()]
        return nn.Sequential(*hidden, nn.Linear(units, outputs))


class Value(nn.Module):
    """Value of an action in a state."""

    def __init__(self, units: int, *, seed: int) -> None:
        super().__init__()
        self.layers = make_layers(4, units, 1, seed=seed)

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([observation, action], -1))


def train(steps: int, *, seed: int, with_student: bool = True) -> tuple[SACTrainer, dict[str, TensorDictModule]]:
    """Train the teacher, and its student; returns the trainer at its end and the networks."""
    torch.manual_seed(seed)
    env = make_env()
    env.set_seed(seed)
    teacher = make_actor(64, env.action_spec, seed=seed)
    networks: dict[str, TensorDictModule] = {"teacher": teacher}
    value = ValueOperator(Value(64, seed=seed), in_keys=["observation", "action"])
    loss = SACLoss(teacher, value, num_qvalue_nets=2)
    loss.make_value_estimator(gamma=0.99)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    collector = Collector(
        env,
        teacher,
        frames_per_batch=STEPS_PER_BATCH,
        total_frames=steps,
        auto_register_policy_transforms=False,
    )
    trainer = SACTrainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=UPDATES_PER_BATCH,
        loss_module=loss,
        optimizer=optimizer,
        clip_grad_norm=False,
        progress_bar=False,
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(steps), batch_size=128),
        target_net_updater=SoftUpdate(loss, tau=0.005),
    )
    # The learning rate falls to nothing over the second half, so that the last network, the one we score, is settled.
    batches = steps / STEPS_PER_BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda batch: min(1.0, max(0.0, 2 - 2 * batch / batches)))
    LRSchedulerHook(schedule).register(trainer)
    if with_student:
        student = make_actor(12, env.action_spec, seed=seed + 1_000)  # added
        students = {"student": ContinuousDistillationLoss(student, teacher)}  # added
        RealTimeDistillTrainer(students, optimizer=partial(torch.optim.Adam, lr=1e-3)).register(trainer)  # added
        networks["student"] = student  # added
    trainer.train()
    return trainer, networks


def play(act: Callable[[np.ndarray], np.ndarray], *, episodes: int, seed: int) -> np.ndarray:
    """Raw returns ``[episodes]``, one game a slot, in an environment of its own."""
    games = gymnasium.make_vec(GAME, episodes, "sync")
    observation, _ = games.reset(seed=10_000_000 + 1_000 * seed)  # games that training never sees
    returns = np.zeros(episodes)
    for _ in range(EPISODE_STEPS):
        observation, reward, _, _, _ = games.step(act(observation))
        returns += reward
    games.close()
    return returns


def compare(networks: Mapping[str, TensorDictModule], *, episodes: int, seed: int) -> dict[str, Any]:
    """Play each network without exploration, and a random player, on the same games; the first is the teacher."""

    @torch.no_grad()
    def greedy(network: TensorDictModule, observation: np.ndarray) -> np.ndarray:
        inputs = TensorDict({"observation": torch.from_numpy(observation)}, [episodes])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            return network(inputs)["action"].numpy()

    generator = np.random.default_rng(seed)
    random_returns = play(lambda _: generator.uniform(-2, 2, (episodes, 1)), episodes=episodes, seed=seed)
    random_score = float(random_returns.mean())
    returns = {name: play(partial(greedy, network), episodes=episodes, seed=seed) for name, network in networks.items()}
    gain = float(returns["teacher"].mean()) - random_score
    parameters = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    rows = [
        {
            "name": name,
            "role": name,
            "parameters": parameters[name],
            "parameter_ratio": parameters[name] / parameters["teacher"],
            "score_mean": float(returns[name].mean()),
            "score_std": float(returns[name].std()),
            "episodes": episodes,
            "percent_of_teacher": None,  # means nothing for negative returns
            "normalised": (float(returns[name].mean()) - random_score) / gain if gain > 0 else None,
        }
        for name in networks
    ]
    return {"random_score": random_score, "networks": rows}


def run(
    *,
    steps: int = 12_000,
    seed: int = 0,
    with_student: bool = True,
    episodes: int = 50,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train, score the last networks, report; returns the content of results.json."""
    start = time.perf_counter()
    _, networks = train(steps, seed=seed, with_student=with_student)
    seconds = round(time.perf_counter() - start, 1)
    results = {"game": GAME, "seed": seed, "steps": steps, "seconds": seconds}
    return report({**results, **compare(networks, episodes=episodes, seed=seed)}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12_000, help="agent steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-only", action="store_true", help="train without the added lines")
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = vars(parser.parse_args())
    begin()
    run(with_student=not options.pop("teacher_only"), **options)


if __name__ == "__main__":
    main()
