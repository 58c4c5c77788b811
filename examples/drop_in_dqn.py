"""A stock TorchRL ``DQNTrainer`` that gets a far smaller student, by the lines marked ``# added``.

    python examples/drop_in_dqn.py
    python examples/drop_in_dqn.py --seed 1 --save teacher.pt --out results/drop_in_dqn

The student learns from the very minibatches its teacher learns from, by the loss of Sun & Fazli 2019
(https://arxiv.org/abs/1912.12630), Eq. 3.

Half a minute on an idle CPU core. The networks scored are the last ones, on 50 games without exploration, of at most
500. Runs of three seeds: docs/methods.md.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AutoresetMode
from scoreboard import begin
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, MultiStep, TensorDictReplayBuffer
from torchrl.envs import EnvBase, GymWrapper, RewardSum
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate
from torchrl.trainers import LRSchedulerHook
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import Evaluator, Experiment, RealTimeDistillTrainer, StudentDQNLoss  # added

STEPS_PER_BATCH = 256  # agent steps, of all slots together
UPDATES_PER_BATCH = 32
GAMMA = 0.99


def make_env(slots: int) -> EnvBase:
    """CartPole, ``slots`` games side by side; a game ends after 500 steps at the latest, each worth 1."""
    # GymEnv(..., num_envs=slots) would reset one step late and mix up the transitions around it.
    games = gymnasium.make_vec("CartPole-v1", slots, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
    return GymWrapper(games, categorical_action_encoding=True).append_transform(RewardSum())


def make_actor(units: int, env: EnvBase, *, seed: int) -> QValueActor:
    """Two hidden layers of ``units``. Drawing the weights leaves the random stream of training alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(4, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 2)]
    return QValueActor(nn.Sequential(*layers), in_keys=["observation"], spec=env.action_spec_unbatched)


def build(steps: int, *, seed: int, with_student: bool = True) -> tuple[DQNTrainer, dict[str, TensorDictModule]]:
    """A trainer of the teacher, and of its student, and the networks."""
    torch.manual_seed(seed)
    env = make_env(8)
    env.set_seed(seed)
    teacher = make_actor(128, env, seed=seed)
    networks = {"teacher": teacher}
    # DQNTrainer drops what is collected before init_random_frames; we begin with random actions of the policy instead.
    exploration = EGreedyModule(env.action_spec_unbatched, eps_init=1.0, eps_end=0.05, annealing_num_steps=steps // 4)
    ten_steps = MultiStep(gamma=GAMMA, n_steps=10)
    ten_steps.done_keys = ("done",)  # move "terminated" on, too: else games that end within the ten steps look endless
    collector = Collector(
        env,
        TensorDictSequential(teacher, exploration),
        frames_per_batch=STEPS_PER_BATCH,
        total_frames=steps,
        postproc=ten_steps,
        auto_register_policy_transforms=False,
    )
    loss = DQNLoss(teacher, action_space="categorical", loss_function="smooth_l1", delay_value=True, double_dqn=True)
    loss.make_value_estimator(gamma=GAMMA)
    trainer = DQNTrainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=UPDATES_PER_BATCH,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=2e-3),
        clip_norm=10.0,
        progress_bar=False,
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(20_000), batch_size=64),
        target_net_updater=SoftUpdate(loss, tau=0.05),
        greedy_module=exploration,
        episode_reward_key="episode_reward",  # RewardSum's name for it
    )
    settle(trainer, steps / STEPS_PER_BATCH)
    if with_student:
        student = networks["student"] = make_actor(16, env, seed=seed + 1_000)  # added
        students = {"student": StudentDQNLoss(student)}  # added
        RealTimeDistillTrainer(students, optimizer=partial(torch.optim.Adam, lr=2e-3)).register(trainer)  # added
    return trainer, networks


def settle(trainer: DQNTrainer, batches: float) -> None:
    """Let the learning rate fall to nothing, so that the last network, which is the one we score, is a settled one."""
    schedule = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda batch: max(0.0, 1 - batch / batches))
    LRSchedulerHook(schedule).register(trainer)


def train(steps: int, *, seed: int, with_student: bool = True) -> tuple[DQNTrainer, dict[str, TensorDictModule]]:
    """Train the teacher, and its student; returns the trainer at its end and the networks."""
    trainer, networks = build(steps, seed=seed, with_student=with_student)
    trainer.train()
    return trainer, networks


def run(
    *,
    steps: int = 20_480,
    seed: int = 0,
    with_student: bool = True,
    episodes: int = 50,
    save: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train, score the last networks, report; returns the content of results.json."""
    trainer, networks = build(steps, seed=seed, with_student=with_student)
    evaluator = Evaluator(partial(make_env, episodes), episodes=episodes, epsilon=0.0)
    experiment = Experiment(trainer, networks, evaluator, out, about={"game": "CartPole-v1", "seed": seed})
    results = experiment.run(final_seed=seed)
    if save is not None:
        torch.save(networks["teacher"].state_dict(), save)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_480, help="agent steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-only", action="store_true", help="train without the added lines")
    parser.add_argument("--episodes", type=int, default=50, help="games each network plays at the end")
    parser.add_argument("--save", type=Path, help="file for the teacher's weights")
    parser.add_argument("--out", type=Path, help="folder of the run; a new one in outputs/ if not given")
    options = vars(parser.parse_args())
    begin()
    run(with_student=not options.pop("teacher_only"), **options)


if __name__ == "__main__":
    main()
